"""Merges where norms stand between q, k and RoPE, against what the norms really do to tokens."""

import numpy as np
import pytest
import torch
from normed_layers import LAYOUT, behind_norms, normed_attention, score_error, tokens_and_moments
from random_layers import LABELS, G, H, d

import fitness
from fitness import FITNESSES
from grouper import LayerLayout
from grouper.merging import MERGES
from grouper.merging.folding import energy, scored
from grouper.merging.spectral import Spectral


def test_across_heads_the_fitness_is_the_calibrated_error_and_no_other_merge_is_better():
    attention, (_, inputs) = normed_attention("all"), tokens_and_moments()
    merged = MERGES["spectral"].before_refinement().merge(attention, LAYOUT, inputs)
    k, v = fitness.calibrated_errors(attention, merged, LAYOUT, inputs)
    assert FITNESSES["spectral"].tables(attention, inputs).errors(np.array([LABELS]))[0] == pytest.approx(
        k + v, rel=1e-6
    )
    for name in MERGES:
        other = fitness.calibrated_errors(
            attention, MERGES.named(name).before_refinement().merge(attention, LAYOUT, inputs), LAYOUT, inputs
        )
        assert other[0] >= k - 1e-9 and other[1] >= v - 1e-9, name


def test_across_heads_real_factors_of_planes_are_free():
    attention, (_, inputs) = normed_attention("all"), tokens_and_moments()
    a, b = attention.planes.T
    for copy, source in ((2, 0), (3, 1)):  # in front of RoPE, a plane of one is a multiple of the other's
        factor = torch.tensor([0.5, -2.0, 1.5]).double()
        rows = torch.empty(d, dtype=torch.float64)
        rows[a], rows[b] = factor, factor
        attention.k[copy] = (rows * attention.k_norm[source] / attention.k_norm[copy])[:, None] * attention.k[source]
    for rescale in (False, True):
        merged = Spectral(rescale=rescale).merge(attention, LAYOUT, inputs)
        assert fitness.calibrated_errors(attention, merged, LAYOUT, inputs)[0] < 1e-9
    assert torch.equal(merged.q, attention.q), "it is q's gains that take the factors"


def test_head_by_head_sizes_do_not_matter():
    attention, (x, inputs) = normed_attention("head"), tokens_and_moments()
    for copy, source in ((2, 0), (3, 1)):
        attention.k[copy] = 7 * attention.k[source]
    merged = MERGES["spectral"].merge(attention, LAYOUT, inputs)
    assert score_error(attention, merged, x) < 1e-20
    assert FITNESSES["spectral"].tables(attention, inputs, part="k").errors(np.array([LABELS]))[0] < 1e-9


@pytest.mark.parametrize("kind", ["head", "all"])
def test_the_shared_head_is_better_than_a_mean_of_weights(kind):
    ours = means = 0.0
    for seed in range(6):
        attention, (x, inputs) = normed_attention(kind, seed), tokens_and_moments(seed)
        ours += score_error(attention, MERGES["spectral"].before_refinement().merge(attention, LAYOUT, inputs), x)
        means += score_error(attention, MERGES.named("mean").merge(attention, LAYOUT, inputs), x)
    assert ours < 0.8 * means


@pytest.mark.parametrize("kind", ["head", "all"])
@pytest.mark.parametrize("merge", MERGES)
def test_heads_alone_stay_as_they_are(kind, merge):
    attention, (x, inputs) = normed_attention(kind), tokens_and_moments()
    alone = LayerLayout.from_labels(range(G), H // G)
    merged = MERGES.named(merge).merge(attention, alone, inputs)
    for name in ("q", "k"):
        before, after = (
            behind_norms(getattr(m, name), getattr(m, f"{name}_norm"), kind, x) for m in (attention, merged)
        )
        assert torch.allclose(before, after, atol=1e-9)


@pytest.mark.parametrize("sign", [-0.9, -0.99, -1.0])
def test_gains_of_opposite_sign_do_not_blow_a_row_up(sign):
    errors = []
    for gain in (1.0, sign):
        attention, (x, inputs) = normed_attention("all"), tokens_and_moments()
        attention.k_norm[0, 0], attention.k_norm[2, 0] = gain, 1.0  # heads 0 and 2 share
        errors.append(
            score_error(attention, MERGES["spectral"].before_refinement().merge(attention, LAYOUT, inputs), x)
        )
    assert errors[1] < 1.2 * errors[0]


def test_across_heads_rescaling_restores_each_heads_k_energy():
    attention, (_, inputs) = normed_attention("all"), tokens_and_moments()
    plain, scaled = (Spectral(rescale=r).merge(attention, LAYOUT, inputs) for r in (False, True))
    own = energy(scored(attention, inputs)[1], inputs)
    a, b = attention.planes.T
    for h in range(H):
        factor = scaled.q_norm[h] / plain.q_norm[h]
        assert torch.allclose(factor, factor[0].expand_as(factor))
        c = (plain.q_norm[h] / attention.q_norm[h])[a]
        shared = scored(plain, inputs)[1][LAYOUT.k.group_of[h]]
        kappa = c[:, None] * torch.complex(shared[a], shared[b])
        seen = (kappa @ inputs.second_moment.to(kappa.dtype) * kappa.conj()).sum().real
        assert (factor[0] ** 2 * seen).item() == pytest.approx(own[h // 2].item(), rel=1e-6)
