"""One layer under refinement: what it is fitted on, how its loss weighs tokens, how fast each part moves."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_layers import random_attention
from rank_threads import side_by_side
from tiny_models import make_model
from toy_sides import toy_sides

from grouper import Checkpoint, GrouperError, HeadLayout
from grouper.attention import Attention, MergedLayer
from grouper.calibration.text import shuffled_passes
from grouper.merging import MEAN
from grouper.progress import no_progress
from grouper.ranks import ALONE, Ranks
from grouper.refinement import refine
from grouper.refinement.courses import turns_of
from grouper.refinement.layer import LayerWorker
from grouper.refinement.objective import relative, size_of
from grouper.refinement.options import RefineOptions, RefinePlan
from grouper.refinement.refine import estimate_seconds, refine_layers
from grouper.refinement.sides import Sides
from grouper.refinement.store import LayerStore
from grouper.running.in_memory import InMemoryModel
from grouper.running.walk import run_layer

LAYOUT = HeadLayout.from_labels([np.arange(8) % 4] * 3, 8, 16)
TOKENS = torch.randint(2, 4000, (8, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(reader) -> InMemoryModel:
    return InMemoryModel(Checkpoint.open(reader))


def merged(model: InMemoryModel, layer: int) -> MergedLayer:
    attention = model.architecture.read(model.checkpoint, layer)
    return MergedLayer(MEAN.merge(attention, LAYOUT.layers[layer]))


def worker(
    model: InMemoryModel, layer: int, options: RefineOptions, tokens: torch.Tensor = TOKENS, apart: bool = True
) -> tuple[LayerWorker, Sides]:
    """At this layer, which gets the embeddings; `set_targets` is done. apart: whether targets have a place of their
    own, whatever the scope."""
    options = options.plan("cpu")
    size = max(1, options.batch_tokens // tokens.shape[1])
    place = model.architecture.places[layer]
    sides = Sides(model, tokens, size, "cpu", options.scope == "block" and not apart).at(place)
    work = LayerWorker(sides.own, "cpu", options).take_up(place[0], LAYOUT.layers[layer])
    work.set_targets(sides)
    return work, sides


def test_every_token_weighs_the_same_whatever_its_size():
    stream = torch.tensor([[[2.0, 0.0], [0.0, 1000.0]]])
    difference = torch.tensor([[[1.0, 0.0], [0.0, 300.0]]])
    assert relative(difference, stream).item() == pytest.approx((1 / 4 + 0.09) / 2)


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_one_step_moves_each_tensor_by_its_share_of_its_own_size(model, scope):
    """Adam's first step is the learning rate itself: in a block, MLP and norms take 0.3 of attention's."""
    options = RefineOptions(scope, steps=1, lr=0.01, batch_tokens=128)
    work, sides = worker(model, 0, options)
    start = merged(model, 0).attention
    work.set(MergedLayer(start))
    shared, others = work.trained(start)
    before = {n: t.detach().clone() for n, t in {**shared, **others}.items()}
    work.descend(start, shared, others, [sides], 1, no_progress)
    assert bool(others) == (scope == "block") and {"q", "k", "v", "o"} == set(shared)
    for name, tensor in {**shared, **others}.items():
        size = before[name].square().mean().sqrt().item()
        share = 0.01 if name in shared else 0.003
        assert (tensor.detach() - before[name]).abs().max().item() == pytest.approx(share * size, rel=1e-3), name
    if others:
        assert any("mlp" in n for n in others) and any("norm" in n for n in others)


def test_the_rate_falls_to_nothing(model):
    """Linearly: the second of two steps goes half as far as the first."""
    moved = []
    for steps in (1, 2):
        work, sides = worker(model, 0, RefineOptions("attention", steps=steps, lr=1e-6, batch_tokens=10**6))
        start = merged(model, 0).attention
        work.set(MergedLayer(start))
        shared, others = work.trained(start)
        v = shared["v"].detach().clone()
        work.descend(start, shared, others, [sides], steps, no_progress)
        moved.append((shared["v"].detach() - v).abs().median().item())
    assert moved[1] == pytest.approx(1.5 * moved[0], rel=0.05), "gradients hardly change in so small a step"


def test_a_layer_is_fitted_on_the_regrouped_stream(model):
    """Layer 0 is damaged, so that the streams into layer 1 differ: fitted on what it will really get, it does better
    there than fitted on the original's stream."""
    options = RefineOptions("attention", steps=60, batch_tokens=256)
    work, sides = worker(model, 0, options)
    damaged = merged(model, 0)
    damaged.attention.o = damaged.attention.o * 3
    work.set(damaged)
    work.advance(work.original, sides.own, sides)
    work.advance(work.regrouped, sides.ours, sides)
    sides.at(model.architecture.places[1])
    regrouped, losses = sides.other.stream.clone(), {}
    for name, stream in (("regrouped", regrouped), ("original", sides.walk.stream)):
        fitting, _ = worker(model, 1, options)
        fitting.set_targets(sides)
        sides.other.stream = stream
        fitting.fit(merged(model, 1).attention, [sides], 60)
        sides.other.stream = regrouped
        losses[name] = fitting.error([sides])
    assert losses["regrouped"] < 0.9 * losses["original"]


def test_refinement_hands_every_layer_the_stream_that_the_layers_before_it_give(model, monkeypatch):
    """In the whole procedure, too: what `fit` gets at layer 1 is the output of layer 0 as it was refined."""
    seen = []
    fit = LayerWorker.fit

    def spy(self, start, every, *more):
        seen.append((every[0].wanted.clone(), every[0].other.stream.clone()))
        return fit(self, start, every, *more)

    monkeypatch.setattr(LayerWorker, "fit", spy)
    options = RefineOptions("attention", steps=2, batch_tokens=256)
    done = refine_layers(model, LAYOUT, lambda layer: merged(model, layer), TOKENS, options)
    assert torch.equal(seen[0][1], model.model.get_input_embeddings()(TOKENS))
    captured = []
    with model.installed({0: LAYOUT.layers[0]}, done):
        hook = model.layer(1).register_forward_pre_hook(lambda _m, args: captured.append(args[0]))
        model.decoder(input_ids=TOKENS, use_cache=False)
        hook.remove()
    assert torch.allclose(seen[1][1], captured[0], atol=1e-4)
    hook = model.layer(1).self_attn.register_forward_hook(lambda _m, _i, output: captured.append(output[0]))
    block_in = model.layer(1).register_forward_pre_hook(lambda _m, args: captured.append(args[0]))
    model.decoder(input_ids=TOKENS, use_cache=False)
    hook.remove(), block_in.remove()
    assert torch.allclose(seen[1][0], captured[1] + captured[2], atol=1e-4), "the original's own stream is the target"


def test_a_layer_that_training_does_not_improve_stays_as_merged(model):
    work, sides = worker(model, 0, RefineOptions("block", steps=3, lr=50.0, batch_tokens=256))
    start = merged(model, 0).attention
    done = work.fit(start, [sides], 3)
    assert torch.equal(done.attention.k, start.k) and not done.others and done.after == done.before > 0


def test_a_layer_that_training_leaves_as_good_as_it_was_stays_as_merged(model):
    """Steps too small for any number to change."""
    work, sides = worker(model, 0, RefineOptions("block", lr=1e-30, batch_tokens=256))
    done = work.fit(merged(model, 0).attention, [sides], 2)
    assert done.after == done.before > 0 and not done.others


def test_errors_on_the_way_are_over_what_the_first_batchs_layer_adds(model):
    """Before the first step, on the windows of that step."""
    work, sides = worker(model, 0, RefineOptions("attention", batch_tokens=128, seed=3))
    start, told = merged(model, 0).attention, []
    wanted, stream = sides.wanted, sides.walk.stream
    work.set(MergedLayer(start))
    with torch.no_grad():
        got = work.output(work.regrouped, stream, sides.own.arguments_of(0))
    rows, of = shuffled_passes(8, 4, 1, 3)[0], wanted.square().sum(-1)
    wrong, added = ((x - wanted).square().sum(-1) / of for x in (got, stream))
    tell = lambda _step, _steps, note: told.append(float(note.removeprefix("error ")))  # noqa: E731
    work.descend(start, work.trained(start)[0], {}, [sides], 1, tell)
    assert told == [pytest.approx((wrong[rows].mean() / added[:4].mean()).item(), abs=6e-5)]


def test_layers_on_disk_are_made_once_and_read_to_the_bit(model, tmp_path):
    made = []

    def make(layer: int) -> MergedLayer:
        made.append(layer)
        return merged(model, layer)

    saved = LayerStore(tmp_path / "layers", make)
    first, again = saved(1), saved(1)
    assert made == [1] and 1 in saved and 0 not in saved
    for name, tensor in vars(first.attention).items():
        other = getattr(again.attention, name)
        assert tensor is other or torch.equal(tensor, other), name
    saved.keep(2, MergedLayer(first.attention, {"mlp.up_proj.weight": torch.ones(2)}, 0.5, 0.25))
    assert saved.errors(2) == (0.5, 0.25) and torch.equal(saved(2).others["mlp.up_proj.weight"], torch.ones(2))


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_targets_are_what_the_original_layer_gives(model, scope):
    _, sides = worker(model, 0, RefineOptions(scope, batch_tokens=64))
    stream, (positional, named) = sides.walk.stream, sides.own.arguments_of(0)
    with torch.no_grad():
        block = model.layer(0)
        added = block.self_attn(block.input_layernorm(stream), *positional, **named)[0]
        behind = stream + added
        expected = behind + block.mlp(block.post_attention_layernorm(behind)) if scope == "block" else behind
    assert torch.allclose(sides.wanted, expected, atol=1e-5)
    assert sides.added == pytest.approx(
        sum(relative((expected - stream)[i : i + 2], expected[i : i + 2]).item() for i in range(0, 8, 2)), rel=1e-4
    )
    if scope == "block":
        in_place = worker(model, 0, RefineOptions(scope, batch_tokens=64), apart=False)[1]
        assert in_place.wanted is in_place.walk.stream and torch.equal(in_place.wanted, sides.wanted)


def test_a_layer_that_adds_nothing_has_an_error_of_one(model):
    """The error is over what the original's layer adds to the stream."""
    work, sides = worker(model, 0, RefineOptions("attention", batch_tokens=256))
    start = merged(model, 0).attention
    work.set(MergedLayer(replace(start, o=torch.zeros_like(start.o))))
    assert work.error([sides]) == pytest.approx(1, rel=1e-6)


def test_a_layer_that_is_right_already_is_not_fitted(model, monkeypatch):
    """The identity's heads, whose error is rounding."""
    work, sides = worker(model, 0, RefineOptions("attention", batch_tokens=256))
    whole = model.architecture.whole_layer
    work.take_up(model.architecture.sites[0], whole)
    monkeypatch.setattr(LayerWorker, "descend", None)
    attention = model.architecture.read(model.checkpoint, 0)
    done = work.fit(attention, [sides], 5)
    assert done.before == done.after < 1e-9 and torch.equal(done.attention.k, attention.k) and not done.others


def test_every_pass_sees_all_windows_in_an_order_of_the_seed():
    one, other = (shuffled_passes(6, 2, 3, seed).flatten().tolist() for seed in (0, 1))
    assert sorted(one) == sorted(other) == list(range(6)) and one != other


def test_what_is_not_given_is_filled_in_by_device():
    options = [RefineOptions().plan(device) for device in ("cpu", "cuda:1")]
    found = [(o.scope, o.batch_tokens, o.tokens) for o in options]
    assert found == [("attention", 1024, 16_384), ("block", 4096, 393_216)]


def test_what_attention_adds_is_scaled_as_the_model_scales_it(tmp_path):
    folder = make_model(tmp_path / "granite", "granite", residual_multiplier=0.5)
    work, sides = worker(InMemoryModel(Checkpoint.open(folder)), 0, RefineOptions("attention"), TOKENS % 199)
    assert work.architecture.multiplier == 0.5
    seen = []
    hook = work.original.post_attention_layernorm.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        run_layer(work.original, sides.walk.stream, sides.own.arguments_of(0))
        behind = work.after_attention(work.original, sides.walk.stream, sides.own.arguments_of(0))
    hook.remove()
    assert torch.allclose(behind, seen[0], atol=1e-6)


def test_biases_are_trained(model):
    work, _ = worker(model, 0, RefineOptions("attention"))
    assert set(work.trained(random_attention(0))[0]) == {"q", "k", "v", "o", "q_bias", "k_bias", "v_bias"}


def test_a_block_that_training_did_not_improve_goes_on_with_the_originals_weights(model):
    work, sides = worker(model, 0, RefineOptions("block", steps=3, lr=50.0, batch_tokens=256))
    work.fit(merged(model, 0).attention, [sides], 3)
    for name, parameter in work.original.named_parameters():
        if "mlp" in name or "norm" in name:
            assert torch.equal(parameter, work.regrouped.get_parameter(name)), name


@pytest.mark.parametrize("in_place", [False, True])
def test_errors_are_over_what_the_layer_adds_also_where_targets_replace_the_stream(model, in_place):
    """In scope "block" the original's next stream is what is wanted, kept in the same place."""
    stream = model.model.get_input_embeddings()(TOKENS)
    _, sides = worker(model, 1, RefineOptions("block", batch_tokens=128), apart=not in_place)
    with torch.no_grad(), model.loaded(1) as module:
        behind = run_layer(module, stream, sides.own.arguments_of(0))
    added = [relative(after - came, after).item() for came, after in zip(stream.split(4), behind.split(4))]
    assert sides.added == pytest.approx(sum(added), rel=1e-4)
    assert sides.of_first == pytest.approx(added[0], rel=1e-4) and torch.equal(sides.walk.stream, stream) != in_place


class ToyWorker(LayerWorker):
    """A layer that doubles the stream and adds one; regrouped, two."""

    shares_layer, trainable = False, set()

    def __init__(self, ranks: Ranks, scope: str = "block"):
        self.plan, self.device, self.ranks = RefineOptions(scope).plan("cpu"), "cpu", ranks
        self.original, self.regrouped = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        for added, module in ((1.0, self.original), (2.0, self.regrouped)):
            module.weight.data, module.bias.data = 2 * torch.eye(2), torch.full((2,), added)


@pytest.mark.parametrize("size", [1, 2, 3], ids=lambda n: f"{n} ranks")
@pytest.mark.parametrize("windows", [1, 5, 8], ids=lambda n: f"{n} windows")
def test_every_rank_gets_every_part_of_a_stream(size, windows):
    """Parts of two windows, shared out in turn; what is added is that of the parts in their order."""
    stream = torch.randn(windows, 3, 2, generator=torch.Generator().manual_seed(0))
    behind = 2 * stream + 1
    added = [relative(b - s, b).item() for s, b in zip(stream.split(2), behind.split(2))]

    def work(ranks: Ranks) -> None:
        ours, sides = ToyWorker(ranks), toy_sides(stream.clone(), stream.clone(), 2)
        ours.set_targets(sides)
        assert torch.allclose(sides.wanted, behind) and torch.equal(sides.walk.stream, stream)
        assert sides.added == pytest.approx(sum(added)) and sides.of_first == pytest.approx(added[0])
        wrong = sum(relative(torch.ones(len(b), 3, 2), b).item() for b in behind.split(2))
        assert ours.error([sides]) == pytest.approx(wrong / sum(added)), "the regrouped layer adds one too much"
        ours.advance(ours.original, sides.own, sides)
        assert torch.allclose(sides.walk.stream, behind) and torch.equal(sides.other.stream, stream)
        ours.advance(ours.regrouped, sides.ours, sides)
        assert torch.allclose(sides.other.stream, behind + 1)

    side_by_side(size, work) if size > 1 else work(ALONE)


class Stretching(torch.nn.Module):
    """Adds a matrix' product, times what the layer is called with, to the stream."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.diag(torch.tensor([0.5, 0.2])))

    def forward(self, stream: torch.Tensor, times: float) -> torch.Tensor:
        return stream + times * stream @ self.weight.T


class Stretched(LayerWorker):
    """A layer that is one matrix, q's. Called with 1, as short windows have it."""

    shares_layer = False

    def __init__(self, options: RefineOptions):
        self.plan, self.device, self.ranks, self.trainable = options.plan("cpu"), "cpu", ALONE, set()
        self.original, self.regrouped = Stretching(), Stretching()

    def tensors(self, attention: Attention) -> dict[str, torch.Tensor]:
        return {"weight": attention.q[0]}


def test_two_lengths_take_turns_by_their_tokens_and_errors_are_over_both():
    """Adam by hand. 8 windows of 4 tokens, two a step, and 2 of 8, one a step and called with 3: of six steps, the
    second and the fifth. An error is all that is wrong, part by part, over all that is added."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, 2, generator=generator)  # noqa: E731
    short, long = [draw(8, 4), draw(8, 4)], [draw(2, 8), draw(2, 8)]  # the original's, and the regrouped
    work = Stretched(RefineOptions("block", lr=0.3, batch_tokens=8, seed=5))
    every = [toy_sides(*short, 2, ((1.0,), {})), toy_sides(*long, 1, ((3.0,), {}))]
    for sides, streams in zip(every, (short, long)):
        work.set_targets(sides)
        streams.append(sides.wanted)
    told, zeros = [], torch.zeros(1, 2, 2)
    start = Attention(torch.eye(2)[None] * 0.3, zeros, zeros, torch.zeros(2, 1, 2))
    tell = lambda _step, _steps, note: told.append(float(note.removeprefix("error ")))  # noqa: E731
    done = work.fit(start, every, 6, tell)

    def share(difference, wanted) -> torch.Tensor:
        return (difference.square().sum(-1) / wanted.square().sum(-1)).mean()

    def batches(weight: torch.Tensor, size: int, times: float, streams: list) -> list[tuple[float, float]]:
        """(what is wrong, what is added) of each."""
        original, regrouped, wanted = (stream.split(size) for stream in streams)
        got = [r + times * r @ weight.T for r in regrouped]
        return [(share(g - w, w).item(), share(w - o, w).item()) for g, w, o in zip(got, wanted, original)]

    def error(weight: torch.Tensor) -> float:
        both = batches(weight, 2, 1.0, short) + batches(weight, 1, 3.0, long)
        return sum(wrong for wrong, _ in both) / sum(added for _, added in both)

    weight = (torch.eye(2) * 0.3).requires_grad_()
    assert done.before == pytest.approx(error(weight), rel=1e-5)
    assert torch.allclose(short[2], short[0] * torch.tensor([1.5, 1.2])), "the original's layer"
    assert torch.allclose(long[2], long[0] * torch.tensor([2.5, 1.6])), "called with 3"
    scale = batches(weight, 2, 1.0, short)[0][1]
    rows = {"short": shuffled_passes(8, 2, 4, 5).tolist(), "long": shuffled_passes(2, 1, 2, 5).tolist()}
    optimizer = torch.optim.Adam([weight], betas=(0.9, 0.95))
    for step, name in enumerate(["short", "long", "short", "short", "long", "short"]):
        _, regrouped, wanted = (stream[rows[name][0]] for stream in (short if name == "short" else long))
        del rows[name][0]
        loss = share(regrouped + {"short": 1, "long": 3}[name] * regrouped @ weight.T - wanted, wanted) / scale
        assert told[step] == pytest.approx(loss.item(), abs=1e-4)
        optimizer.param_groups[0]["lr"] = 0.3 * (0.3 / 2**0.5) * (1 - step / 6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(done.attention.q[0], weight, atol=1e-5)
    assert done.after == pytest.approx(error(weight), rel=1e-4) and done.after < done.before


def test_each_text_takes_its_turns():
    """The one that is furthest behind its share of the tokens is next, of equals the first."""
    assert turns_of([300, 100], 8) == [0, 0, 1, 0, 0, 0, 1, 0]
    assert turns_of([1, 1, 2], 4) == [2, 0, 1, 2] and turns_of([5, 5], 3) == [0, 1, 0] and turns_of([7], 2) == [0, 0]
    assert turns_of([100, 100], 8, [1, 2]) == [0, 1, 0, 0, 1, 0], "steps twice as large: half as many"


class Eight:
    """A walk of eight windows."""

    alike = True

    def __init__(self, tokens: int):
        self.batch = SimpleNamespace(tokens=tokens)

    def __len__(self) -> int:
        return 8


@pytest.mark.parametrize(
    ("tokens", "ranks", "windows", "larger"),
    [(64, 1, 4, 1), (64, 3, 4, 1), (64, 6, 6, 1.5), (64, 99, 8, 2), (256, 1, 1, 1), (256, 2, 2, 2), (512, 1, 1, 1),
     (512, 2, 2, 2)],
)  # fmt: skip
def test_every_rank_has_a_window_of_each_step(tokens, ranks, windows, larger):
    """Of 8 windows, steps of 256 tokens asked for. One process takes what is asked, or a window that is longer."""
    worker = LayerWorker.__new__(LayerWorker)
    worker.plan, worker.ranks = RefineOptions(batch_tokens=256).plan("cpu"), Ranks(0, ranks)
    sides = SimpleNamespace(walk=Eight(tokens))
    assert worker.windows(sides) == windows and worker.larger(sides) == larger
    sides.walk.alike = False
    assert worker.larger(sides) == 1, "parts are a rank's each"


@pytest.mark.parametrize(
    ("options", "context", "long"),
    [({}, 5000, 960), ({"batch_tokens": 200}, 5000, 192), ({}, 300, 288), ({}, 192, 192), ({}, 191, 0),
     ({"batch_tokens": 150}, 5000, 0), ({"batch_tokens": 50}, 5000, 0), ({"long_share": 0.0}, 5000, 0)],
)  # fmt: skip
def test_long_windows_are_whole_short_ones_within_a_step_and_the_context(options, context, long):
    """Of windows of 96 tokens; a step has 1,024 unless said."""
    assert RefineOptions(**options).plan("cpu").long_window(96, context) == long


def test_shares_of_long_windows():
    found = [RefineOptions(long_share=share).plan("cpu").long_share for share in (None, 0.0, 0.25)]
    assert found == [0.5, 0.0, 0.25]
    for share in (-0.1, 1.0):
        with pytest.raises(GrouperError, match=f"`long_share={share}`: expected a share from 0 to below 1"):
            RefineOptions(long_share=share)


def test_long_windows_go_through_the_layers_beside_the_short_ones(model, monkeypatch):
    """What `fit` gets of them at layer 1 is what the original's layer 0 and the refined one give of them; steps are for
    all tokens."""
    seen, fit = [], LayerWorker.fit

    def spy(self, start, every, steps, tell):
        seen.append((steps, [(sides.wanted.clone(), sides.other.stream.clone()) for sides in every[1:]]))
        return fit(self, start, every, 2, tell)

    monkeypatch.setattr(LayerWorker, "fit", spy)
    monkeypatch.setattr(RefinePlan, "steps_for", lambda _options, tokens: tokens)
    long = torch.randint(2, 4000, (3, 96), generator=torch.Generator().manual_seed(1))
    done = refine_layers(
        model, LAYOUT, lambda i: merged(model, i), [TOKENS, long], RefineOptions("block", batch_tokens=96)
    )
    assert [steps for steps, _ in seen] == [8 * 32 + 3 * 96] * 3
    entered, left = [], []
    hooks = [
        model.layer(1).register_forward_pre_hook(lambda _m, inputs: entered.append(inputs[0])),
        model.layer(1).register_forward_hook(
            lambda _m, _i, output: left.append(output[0] if isinstance(output, tuple) else output)
        ),
    ]
    with model.installed({0: LAYOUT.layers[0]}, done):
        model.decoder(input_ids=long, use_cache=False)
    model.decoder(input_ids=long, use_cache=False)
    for hook in hooks:
        hook.remove()
    ((wanted, regrouped),) = seen[1][1]
    assert torch.allclose(regrouped, entered[0], atol=1e-4) and not torch.allclose(regrouped, entered[1], atol=1e-2)
    assert torch.allclose(wanted, left[1], atol=1e-4)


def test_an_error_is_taken_on_sixteen_parts():
    stream = torch.randn(40, 3, 2, generator=torch.Generator().manual_seed(0))
    ours, behind, sides = ToyWorker(ALONE), 2 * stream + 1, toy_sides(stream.clone(), stream.clone(), 2)
    ours.set_targets(sides)
    added = sum(relative(b - s, b).item() for s, b in list(zip(stream.split(2), behind.split(2)))[:16])
    assert sides.added == pytest.approx(added)
    wrong = sum(relative(torch.ones(2, 3, 2), b).item() for b in behind.split(2)[:16])
    assert ours.error([sides]) == pytest.approx(wrong / added)


@pytest.mark.parametrize(("batch_tokens", "parts"), [(7, 3), (2, 5), (100, 1)])
def test_sizes_of_parts(model, batch_tokens, parts):
    """Of five windows of three tokens; a window at least."""
    plan = RefineOptions("block", batch_tokens=batch_tokens).plan("cpu")
    (sides,) = refine.sides_of(model, TOKENS[:5, :3], plan, "cpu")
    assert len(sides.parts) == parts and sides.tokens == 15


def test_defaults():
    plans = [RefineOptions(scope).plan("cpu") for scope in ("attention", "block")]
    assert [plan.rate for plan in plans] == [0.04, 0.02] and [plan.key["lr"] for plan in plans] == [None, None]
    given = RefineOptions("block", steps=7, lr=0.5).plan("cuda")
    assert given.rate == given.key["lr"] == 0.5 and given.steps_for(10**6) == 7 and given.plan("cpu") is given
    assert size_of(torch.tensor([3.0, 4.0, 0.0, 0.0])) == pytest.approx(2.5), "root mean square"


@pytest.mark.parametrize(("qk_norm", "gains"), [("all", {"q_norm", "k_norm"}), ("head", set()), (None, set())])
def test_gains_are_trained_where_each_head_has_its_own_and_sinks_always(qk_norm, gains):
    """A gain that all heads share would have to stay the same for all."""
    start = random_attention(0)
    norms = {n: torch.ones(len(getattr(start, n[0])), 6) for n in ("q_norm", "k_norm")} if qk_norm else {}
    start = replace(start, sinks=torch.ones(8), qk_norm=qk_norm, **norms)
    ours = ToyWorker(ALONE, scope="attention")
    shared, others = ours.trained(start)
    assert shared.keys() == {"q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "sinks"} | gains and not others
    for name, tensor in shared.items():
        assert tensor.requires_grad and torch.equal(tensor, getattr(start, name)), name
        assert tensor.data_ptr() != getattr(start, name).data_ptr(), name


@pytest.mark.parametrize(("scope", "passes"), [("attention", 3), ("block", 2)])
@pytest.mark.parametrize("size", [1, 2], ids=lambda n: f"{n} ranks")
def test_the_time_of_a_refinement_is_that_of_its_parts(model, monkeypatch, scope, passes, size):
    """Of one layer: merging 1.5 s; setting up 0.5 s; 20 steps of 1 s; 8 steps took 50 s with 42 beside them, which come
    once; passes of 3 s over four batches; errors before and after on three batches more than were timed. Ranks share
    steps and passes."""
    took, clock = iter([1.5, 0.5, 50.0, 3.0]), iter(range(1000))

    def seconds(call, device) -> float:
        call()
        return next(took)

    monkeypatch.setattr(refine, "_seconds", seconds)
    monkeypatch.setattr(refine, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    plan = RefineOptions(scope, steps=20, batch_tokens=64).plan("cpu")
    found = estimate_seconds(
        model, LAYOUT, lambda layer: merged(model, layer), [TOKENS], plan, "cpu", Ranks(0, size)
    )  # fmt: skip
    one_layer = 2 + 42 + 2 * 3 * (4 - 1) + (20 * 1 + passes * 3 * 4) / size
    assert found == pytest.approx(3 * one_layer)


@pytest.mark.parametrize(
    ("device", "merging", "seconds"), [("cpu", 3.0, 13.0), ("cuda:1", 3.0, 10.0), ("cuda", 12.0, 12.0)]
)
def test_a_gpu_refines_while_the_next_layer_is_merged(device, merging, seconds):
    assert refine._of_a_layer(merging, 10.0, device) == seconds
