"""Layers of a model with an encoder under refinement: what only fills short examples up counts for nothing, and a part
of the examples is a step."""

import pytest
import torch
from encoder_samples import examples
from torch import Tensor, nn
from toy_sides import toy_sides

from grouper import Checkpoint
from grouper.attention import Attention, MergedLayer
from grouper.calibration.text import shuffled_passes
from grouper.merging import MEAN
from grouper.ranks import ALONE
from grouper.refinement.layer import REST, LayerWorker
from grouper.refinement.options import RefineOptions
from grouper.refinement.refine import sides_of
from grouper.refinement.sides import Sides
from grouper.running.in_memory import InMemoryModel
from grouper.running.walk import Walk

GENERATOR = torch.Generator().manual_seed(0)
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])
OWN = torch.tensor([0.5, 0.1, 0.8, 0.2])  # all differ, so that what the layer adds is another share of each token


def sides(masks: bool = True, parts: int = 3) -> Sides:
    """Parts of two examples; what only fills the second one up is as large as all else together. Layers are called with
    something else in each part."""
    found = [torch.randn(2 * parts, 5, 4, generator=GENERATOR) for _ in range(2)]
    mask = MASK.repeat(parts, 1)
    for stream in found:
        stream[~mask] *= 30
    return toy_sides(*found, 2, [((float(times),), {}) for times in range(1, parts + 1)], mask if masks else None)


class Layer(nn.Module):
    """One matrix, q's, and a number, times what it is called with."""

    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.diag(OWN)), nn.Parameter(torch.tensor([2.0]))

    def forward(self, stream: Tensor, times: float) -> Tensor:
        return stream + times * self.scale * stream @ self.weight.T


class ToyWorker(LayerWorker):
    shares_layer = False

    def __init__(self, options: RefineOptions):
        self.plan, self.device, self.ranks = options.plan("cpu"), "cpu", ALONE
        self.original, self.regrouped = Layer(), Layer()

    def tensors(self, attention: Attention) -> dict[str, Tensor]:
        return {"weight": attention.q[0]}


def attention(weight: Tensor) -> Attention:
    return Attention(weight[None], *(torch.zeros(1, 4, 4) for _ in range(2)), torch.zeros(4, 1, 4))


def relative(got: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over tokens, filling left out, of |got - wanted|^2 / |wanted|^2."""
    each = (got - wanted).square().sum(-1) / wanted.square().sum(-1)
    return each.mean() if mask is None else each[mask].mean()


@pytest.mark.parametrize("masks", [True, False], ids=["filled up", "all alike"])
def test_an_attention_is_fitted_on_what_is_no_filling(masks):
    """Adam on the mean over tokens that are read, over what the first part's layer adds; a part a step."""
    seen, steps = sides(masks), 5
    work = ToyWorker(RefineOptions("block", lr=0.02, seed=3))
    work.set_targets(seen)
    mask = MASK if masks else None
    wanted, original, regrouped = (s.split(2) for s in (seen.wanted, seen.walk.stream, seen.other.stream))
    added = [relative(s, w, mask).item() for w, s in zip(wanted, original)]
    assert (seen.added, seen.of_first) == (pytest.approx(sum(added)), pytest.approx(added[0]))
    for times, (w, s) in enumerate(zip(wanted, original), 1):
        assert torch.allclose(w, s + times * 2 * OWN * s)
    start, told = torch.eye(4) * 0.3, []
    shared, others = {"q": start[None].clone().requires_grad_()}, {"scale": torch.tensor([2.0], requires_grad=True)}
    tell = lambda step, _steps, note: told.append(float(note.removeprefix("error ")))  # noqa: E731
    work.descend(attention(start), shared, others, [seen], steps, tell)
    ours = [start.clone().requires_grad_(), torch.tensor([2.0], requires_grad=True)]
    rates = [0.02 * start.square().mean().sqrt().item(), 0.02 * REST * 2]
    optimizer = torch.optim.Adam([{"params": [t], "lr": r} for t, r in zip(ours, rates)], betas=(0.9, 0.95))
    losses = []
    for step, i in enumerate(shuffled_passes(3, 1, steps, 3).flatten().tolist()):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * (1 - step / steps)
        got = regrouped[i] + (i + 1) * ours[1] * regrouped[i] @ ours[0].T
        loss = relative(got, wanted[i], mask) / added[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert told == pytest.approx(losses, abs=1e-4)
    assert torch.allclose(shared["q"][0], ours[0], atol=1e-5) and torch.allclose(others["scale"], ours[1], atol=1e-5)


def test_errors_leave_filling_out_and_are_over_what_the_layer_adds():
    seen, work = sides(), ToyWorker(RefineOptions("block"))
    work.set_targets(seen)
    work.regrouped.weight.data *= 0
    parts = zip(seen.other.stream.split(2), seen.wanted.split(2))
    expected = sum(relative(s, w, MASK).item() for s, w in parts) / seen.added
    assert work.error([seen]) == pytest.approx(expected, rel=1e-5)


def test_both_streams_go_on_by_their_own_layers():
    seen, work = sides(), ToyWorker(RefineOptions("block"))
    work.regrouped.weight.data *= 2
    original, regrouped = seen.walk.stream.clone(), seen.other.stream.clone()
    work.advance(work.original, seen.own, seen), work.advance(work.regrouped, seen.ours, seen)
    times = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])[:, None, None]
    assert torch.allclose(seen.walk.stream, original + times * 2 * OWN * original, atol=1e-4)
    assert torch.allclose(seen.other.stream, regrouped + times * 4 * OWN * regrouped, atol=1e-4)


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_a_decoders_layer_has_a_target_for_each_attention_or_one_for_the_whole(encoders, scope):
    """What `after_attention` gives is what the next norm gets; others of the layer are given out as they are now."""
    model = InMemoryModel(Checkpoint.open(encoders("bart")))
    a, place = model.architecture, model.architecture.places[2]
    some, options = examples(encoders("bart"), 4), RefineOptions(scope, batch_tokens=24, steps=2).plan("cpu")
    (here,) = sides_of(model, some, options, "cpu")
    here.at(place)
    work, found = LayerWorker(here.own, "cpu", options), []
    norms = [work.original.get_submodule(site.family.in_class.behind) for site in place]
    hooks = [norm.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0])) for norm in norms]
    entered = here.walk.stream.clone()
    with torch.no_grad():
        for number in range(len(here.parts)):
            here.own.through(work.original, number)
    for hook in hooks:
        hook.remove()
    for which, site in enumerate(place):
        work.take_up(site, a.whole_layer)
        if scope == "attention":
            work.set_targets(here)
            assert torch.allclose(here.wanted, torch.cat(found[which::2]), atol=1e-5)
            assert torch.equal(here.walk.stream, entered)
    if scope == "block":
        work.set_targets(here)
        start = MEAN.merge(a.read(model.checkpoint, place[1].index), a.whole_layer)
        name = next(n for n in sorted(work.trainable) if n.endswith("fc1.weight"))
        work.regrouped.get_parameter(name).data += 1.0
        done = work.fit(start, [here], 1)
        assert done.others.keys() == {work.stored[n] for n in work.trainable}
        assert not any("attn" in n and "layer_norm" not in n for n in done.others)
        if done.after == done.before:
            assert torch.equal(done.others[work.stored[name]], work.original.get_parameter(name) + 1.0)


def test_biases_of_positions_that_all_layers_add_are_not_trained(encoders):
    model = InMemoryModel(Checkpoint.open(encoders("t5")))
    walk = Walk(model, torch.zeros(0, 1, dtype=torch.long), 1)
    work = LayerWorker(walk.at(model.architecture.places[0]), "cpu", RefineOptions("block").plan("cpu"))
    assert any("relative_attention_bias" in name for name in work.stored)
    assert work.trainable and not any("relative_attention_bias" in n or "SelfAttention" in n for n in work.trainable)


def test_names_go_in_and_out_as_checkpoints_have_them(encoders):
    """ViT's class calls what is within a layer otherwise."""
    model = InMemoryModel(Checkpoint.open(encoders("vit")))
    walk, a = Walk(model, torch.zeros(0, 1, dtype=torch.long), 1), model.architecture
    work = LayerWorker(walk.at(a.places[1]), "cpu", RefineOptions("block").plan("cpu")).take_up(
        a.sites[1], a.whole_layer
    )
    assert work.stored["mlp.fc1.weight"] == "intermediate.dense.weight" and "mlp.fc1.weight" in work.trainable
    start = a.read(model.checkpoint, 1)
    changed = {"intermediate.dense.weight": torch.ones_like(work.original.get_parameter("mlp.fc1.weight"))}
    work.set(MergedLayer(start, changed))
    assert (work.regrouped.get_parameter("mlp.fc1.weight") == 1).all()
    given = work._given_out(start, {"mlp.fc1.weight": torch.zeros(1)}, 1.0, 0.5)
    assert given.others.keys() == {"intermediate.dense.weight"} and (given.before, given.after) == (1.0, 0.5)


@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "mbart", "whisper", "marian"])
def test_a_decoder_reads_what_its_class_gives_it(encoders, name):
    """What transformers says that its encoder gives is what the walk calls the decoder's layers with."""
    model, some = InMemoryModel(Checkpoint.open(encoders(name))), examples(encoders(name), 4)
    with torch.no_grad():
        given = model.model(**some.called_with("cpu", torch.float32, True)).encoder_last_hidden_state
    for step in Walk(model, some, 2):
        if step.sites[0].stack:
            for number in range(2):
                positional, named = step.arguments_of(number)
                values = [v for v in (*positional, *named.values()) if torch.is_tensor(v) and v.ndim == 3]
                assert any(torch.allclose(v, given[2 * number : 2 * number + 2], atol=1e-5) for v in values)
        with step.loaded() as module:
            step.advance(module)
