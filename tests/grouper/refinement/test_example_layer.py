"""One attention of an encoder under refinement, on examples of different lengths, against plain torch."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from grouper import Checkpoint
from grouper.attention import Attention
from grouper.running.batch import NOT_ASKED, Batch
from grouper.calibration.text import shuffled_passes
from grouper.model.in_memory import InMemoryModel
from grouper.model.made_up import random_inputs
from grouper.refinement.encoders import _behind_encoder
from grouper.refinement.example_layer import Batch, ExampleWorker, Streams
from grouper.refinement.layer import REST, RefineOptions

GENERATOR = torch.Generator().manual_seed(0)
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])
OWN = torch.tensor([0.5, 0.1, 0.8, 0.2])  # all differ, so that what the layer adds is another share of each token


def streams(masks: bool = True, batches: int = 3) -> Streams:
    """Batches of two examples; what only fills the second one up is as large as all else together."""
    found = [[torch.randn(2, 5, 4, generator=GENERATOR) for _ in range(batches)] for _ in range(2)]
    for batch in (*found[0], *found[1]):
        batch[~MASK] *= 30
    parts = [Batch(Batch({"input_ids": MASK.long()}), {None: ((), {})}) for _ in range(batches)]
    return Streams(parts, *found, [None] * batches, [MASK if masks else None] * batches)


class ToyWorker(ExampleWorker):
    """A layer that is one matrix, q's, and a number."""

    def __init__(self, options: RefineOptions):
        self.options, self.device, self.place = options.for_device("cpu"), "cpu", None
        self.original, self.regrouped = Layer(), Layer()

    def tensors(self, attention: Attention) -> dict[str, Tensor]:
        return {"weight": attention.q[0]}

    def matched(self, module: nn.Module, stream: Tensor, arguments) -> Tensor:
        return module(stream)

    called = matched


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.diag(OWN)), nn.Parameter(torch.tensor([2.0]))

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.scale * stream @ self.weight.T


def attention(weight: Tensor) -> Attention:
    return Attention(weight[None], *(torch.zeros(1, 4, 4) for _ in range(2)), torch.zeros(4, 1, 4))


def relative(got: Tensor, wanted: Tensor, base: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over tokens, filling left out, of |got - wanted|^2 / |base|^2."""
    each = (got - wanted).square().sum(-1) / base.square().sum(-1)
    return each.mean() if mask is None else each[mask].mean()


@pytest.mark.parametrize("masks", [True, False], ids=["filled up", "all alike"])
def test_an_attention_is_fitted_on_what_is_no_filling(masks):
    """Adam on the mean over tokens that are read, over what the first batch's layer adds; a batch a step."""
    seen, steps = streams(masks), 5
    work = ToyWorker(RefineOptions("block", lr=0.02, seed=3))
    wanted = work.targets(seen)
    mask = MASK if masks else None
    added = [relative(w, s, w, mask).item() for w, s in zip(wanted, seen.original)]
    assert (work.added, work.scale) == (pytest.approx(sum(added)), pytest.approx(added[0]))
    for w, s in zip(wanted, seen.original):
        assert torch.allclose(w, s + 2 * OWN * s)
    start, told = torch.eye(4) * 0.3, []
    shared, others = {"q": start[None].clone().requires_grad_()}, {"scale": torch.tensor([2.0], requires_grad=True)}
    tell = lambda step, _steps, note: told.append(float(note.removeprefix("error ")))  # noqa: E731
    work.descend(attention(start), shared, others, wanted, seen, steps, tell)
    ours = [start.clone().requires_grad_(), torch.tensor([2.0], requires_grad=True)]
    rates = [0.02 * start.square().mean().sqrt().item(), 0.02 * REST * 2]
    optimizer = torch.optim.Adam([{"params": [t], "lr": r} for t, r in zip(ours, rates)], betas=(0.9, 0.95))
    losses = []
    for step, i in enumerate(shuffled_passes(3, 1, steps, 3).flatten().tolist()):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * (1 - step / steps)
        stream = seen.regrouped[i]
        loss = relative(stream + ours[1] * stream @ ours[0].T, wanted[i], wanted[i], mask) / added[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert told == pytest.approx(losses, abs=1e-4)
    assert torch.allclose(shared["q"][0], ours[0], atol=1e-5) and torch.allclose(others["scale"], ours[1], atol=1e-5)


def test_errors_leave_filling_out_and_are_over_what_the_layer_adds():
    seen, work = streams(), ToyWorker(RefineOptions("attention"))
    wanted = work.targets(seen)
    work.regrouped.weight.data *= 0
    expected = sum(relative(s, w, w, MASK).item() for s, w in zip(seen.regrouped, wanted)) / work.added
    assert work.error(wanted, seen) == pytest.approx(expected, rel=1e-5)


def test_both_streams_go_on_by_their_own_layers():
    seen, work = streams(), ToyWorker(RefineOptions("attention"))
    work.regrouped.weight.data *= 2
    original, regrouped = list(seen.original), list(seen.regrouped)
    work.advance_all(seen)
    assert all(torch.allclose(a, s + 2 * OWN * s) for a, s in zip(seen.original, original))
    assert all(torch.allclose(a, s + 4 * OWN * s) for a, s in zip(seen.regrouped, regrouped))


def test_an_encoder_goes_by_what_is_read_a_decoder_by_what_is_written():
    labels = torch.tensor([[4, 5, NOT_ASKED], [6, NOT_ASKED, NOT_ASKED]])
    examples = Batch({"input_ids": MASK.long(), "attention_mask": MASK.long()}, labels)
    place = object()
    stream, source = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    batch = Batch(examples, {}, {place: stream})
    encoder, decoder = (Streams.entering([batch], place, sources) for sources in (None, [source]))
    assert torch.equal(encoder.masks[0], MASK) and encoder.sources == [None]
    assert torch.equal(decoder.masks[0], labels != NOT_ASKED) and decoder.sources[0] is source
    assert encoder.original[0] is encoder.regrouped[0] is stream and encoder.original is not encoder.regrouped
    bare = Streams.entering([Batch(Batch({"pixels": torch.zeros(2, 3)}), {}, {place: stream})], place, None)
    assert bare.masks == [None]


def test_the_encoders_stream_alone_is_exchanged_among_arguments():
    place, source, mask = object(), torch.randn(2, 5, 4), torch.zeros(2, 1, 5, 5)
    positions, given = torch.arange(5)[None, :, None], torch.randn(2, 5, 4)
    batch = Batch(Batch({}), {place: ((mask, given), {"encoder_hidden_states": given, "positions": positions})})
    (first, second), named = batch.arguments(place, source)
    assert first is mask and second is source and named["encoder_hidden_states"] is source
    assert named["positions"] is positions, "whole numbers are no stream"
    assert batch.arguments(place, None)[1]["encoder_hidden_states"] is given


def test_a_decoder_reads_what_stands_behind_the_encoders_last_norm():
    norm, stream = nn.LayerNorm(4), torch.randn(2, 5, 4)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)

    def model(name: str | None) -> SimpleNamespace:
        family = SimpleNamespace(parts=(None, None, SimpleNamespace(source_norm=name)))
        inner = nn.ModuleDict({"encoder": nn.ModuleDict({"layer_norm": norm})})
        return SimpleNamespace(
            architecture=SimpleNamespace(family=family), model=nn.ModuleDict({"model": inner}), prefix="model.",
            dtype=torch.float32,
        )  # fmt: skip

    assert torch.equal(_behind_encoder(model("encoder.layer_norm"), stream), norm(stream))
    assert _behind_encoder(model(None), stream) is stream


@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "mbart", "whisper", "marian"])
def test_a_decoder_reads_what_its_class_gives_it(encoders, name):
    """What transformers says that its encoder gives, from the stream behind the encoder's last layer."""
    model, behind = InMemoryModel(Checkpoint.open(encoders(name))), []
    last = model.layer(model.architecture.encoder_layers - 1)
    hook = last.register_forward_hook(lambda _m, _i, out: behind.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        given = model.model(**random_inputs(model.model, model.architecture, 24)).encoder_last_hidden_state
    hook.remove()
    assert torch.equal(_behind_encoder(model, behind[0]), given)
    assert torch.equal(given, behind[0]) == (name in ("bart", "marian"))
