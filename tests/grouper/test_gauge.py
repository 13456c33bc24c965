"""Keys and values in another gauge compute the same, whatever stands around them, and round less where it helps."""

from dataclasses import replace

import pytest
import torch
from family_samples import SAMPLES, UNEQUAL, layout_for, make

from grouper import Architecture, Checkpoint, HeadLayout
from grouper.attention import Attention, MergedLayer
from grouper.calibration.input_moments import AssumedInputs
from grouper.compress import Regrouper
from grouper.families.decoders import FAMILIES
from grouper.gauge import Gauge, GaugedLayers, best_gauge, gauged, theta_of
from grouper.gauge_drawn import Drawn, best_number
from grouper.merging import MEAN
from grouper.running.in_memory import InMemoryModel

WINDOWS = torch.randint(3, 190, (2, 24), generator=torch.Generator().manual_seed(1))
DECODERS = [name for name, (kind, _) in SAMPLES.items() if not FAMILIES[kind].encodes]


def random_gauge(attention: Attention, seed: int, exact: bool) -> Gauge:
    """Scales that planes have one of, other rows one each; powers of two if exact."""
    generator = torch.Generator().manual_seed(seed)
    k = 3 * torch.rand(attention.k.shape[:2], generator=generator) - 1.5
    k[:, attention.rotated_planes[:, 1]] = k[:, attention.rotated_planes[:, 0]]
    k = torch.zeros_like(k) if attention.qk_norm == "head" else k
    v = 2 + torch.rand(len(attention.v), generator=generator)
    k, v = (k.round(), v.round()) if exact else (k, v)
    return Gauge(torch.exp2(k), torch.exp2(v), [])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", DECODERS)
def test_no_logit_changes(name, exact, tmp_path):
    """In groups of unequal sizes; behind biases, norms across heads, partial and interleaved RoPE, without RoPE."""
    folder = make(tmp_path / "model", *SAMPLES[name])
    checkpoint = Checkpoint.open(folder)
    model, layout = InMemoryModel(checkpoint), layout_for(folder, UNEQUAL)
    merged = Regrouper(checkpoint).merged(layout, MEAN)

    def changed(layer: int) -> MergedLayer:
        found = merged(layer)
        gauge = random_gauge(found.attention, layer, exact)
        return replace(found, attention=gauged(found.attention, layout.layers[layer], gauge))

    with torch.inference_mode():
        with model.installed(layout, merged) as installed:
            before = installed(WINDOWS).logits
        with model.installed(layout, changed) as installed:
            after = installed(WINDOWS).logits
    assert changed(0).attention.v.ne(merged(0).attention.v).any()
    assert (after - before).abs().max() < 1e-5 * max(1, float(before.abs().max()))


def spiked(plane: int = 2, size: float = 200.0) -> tuple[Attention, HeadLayout]:
    """A layer of 4 heads of 64 over 2 KV heads whose first has a large bias in one plane."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 64, 48, generator=generator) / 48**0.5 for n in (4, 2, 2))
    bias = torch.zeros(2, 64)
    bias[0, plane], bias[0, plane + 32] = size, -size
    planes = torch.stack([torch.arange(32), torch.arange(32) + 32], -1)
    o = torch.randn(48, 4, 64, generator=generator)
    return Attention(q, k, v, o, k_bias=bias, planes=planes), HeadLayout.ungrouped(1, 4, 2, 64)


def inputs(attention: Attention) -> AssumedInputs:
    return AssumedInputs.from_norm(None, None, attention.q.shape[2])


def test_a_spike_is_scaled_and_nothing_else():
    attention, layout = spiked()
    gauge = best_gauge(attention, layout.layers[0], inputs(attention), 10000.0)
    assert gauge.strengths[0] > 0 and gauge.strengths[1] == 0
    assert gauge.k[0, 2] == gauge.k[0, 34] == gauge.k[0].max() and torch.equal(gauge.k[1], torch.ones(64))
    drawn = Drawn(attention, layout.layers[0], inputs(attention), 10000.0)
    without, within = drawn.errors(0, torch.ones(64)), drawn.errors(0, gauge.k[0])
    assert (within < 0.5 * without).all()
    assert torch.equal(torch.exp2(torch.log2(gauge.k).round()), gauge.k), "powers of two"


def test_layers_that_round_well_stay_as_they_are():
    attention, layout = spiked(size=0.0)
    gauge = best_gauge(attention, layout.layers[0], inputs(attention), 10000.0)
    assert gauge.strengths == [0.0, 0.0] and not gauge.changes
    merged = MergedLayer(attention)
    layers = GaugedLayers(llama(), {}, layout, lambda layer: merged, lambda layer: inputs(attention))
    assert layers(0) is merged


def llama() -> Architecture:
    return Architecture.of({
        "model_type": "llama", "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 1, "head_dim": 64, "vocab_size": 9, "intermediate_size": 9,
    })  # fmt: skip


def test_a_plane_without_keys_has_a_scale_all_the_same():
    attention, layout = spiked()
    attention.k[0, 5] = attention.k[0, 37] = 0
    drawn = Drawn(attention, layout.layers[0], inputs(attention), 10000.0)
    scale = drawn.scale_of(0, 1.0)
    assert scale[5] == 2.0**-8 == scale.min() and torch.equal(drawn.scale_of(0, 0.0), torch.ones(64))


def test_no_way_to_round_may_lose(monkeypatch):
    """A strength that one of the two rounds much less under, and the other a little more, is not taken."""
    attention, layout = spiked()
    drawn = Drawn(attention, layout.layers[0], inputs(attention), 10000.0)
    for share, taken in ((1.01, False), (0.99, True)):
        changed = torch.tensor([0.1, share])
        monkeypatch.setattr(drawn, "errors", lambda head, scale, c=changed: c if (scale != 1).any() else torch.ones(2))
        assert (drawn.best(0)[0] > 0) == taken


def test_chance_is_the_seeds_alone():
    attention, layout = spiked()
    one, other = (best_gauge(attention, layout.layers[0], inputs(attention), 10000.0) for _ in range(2))
    assert torch.equal(one.k, other.k) and torch.equal(one.v, other.v)


def test_where_folding_is_not_exact_nothing_is_folded():
    attention, layout = spiked()
    merged = MergedLayer(attention)

    def layers(config: dict, layout: HeadLayout) -> GaugedLayers:
        return GaugedLayers(llama(), config, layout, lambda layer: merged, lambda layer: inputs(attention))

    assert layers({}, layout)(0) is not merged
    assert layers({"clip_qkv": 8.0}, layout)(0) is merged
    shared = replace(layout.layers[0], q=layout.layers[0].k)
    assert layers({}, replace(layout, layers=(shared,)))(0) is merged


def test_norms_per_head_leave_keys_alone():
    attention, layout = spiked()
    normed = replace(attention, qk_norm="head", q_norm=torch.ones(4, 64), k_norm=torch.ones(2, 64))
    assert torch.equal(best_gauge(normed, layout.layers[0], inputs(attention), 1e4).k, torch.ones(2, 64))


def test_small_and_large_values_come_into_the_range_of_fp8():
    drawn = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
    assert best_number(drawn) == 1 and best_number(8 * drawn) == 1
    assert best_number(0.001 * drawn).log2() == 11 and best_number(500 * drawn).log2() == -8


def test_bases_of_rope():
    assert theta_of({"rope_theta": 5e5}) == 5e5 and theta_of({}) == 1e4
    assert theta_of({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}) == 1e6
