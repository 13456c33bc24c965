"""Bounds of a layer's errors, a second way: by singular values, from the definition, and where they are zero."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from normed_layers import normed_attention, tokens_and_moments
from random_layers import LABELS, ROTARY, D, G, H, calibrated_errors, d, random_attention, random_moments, root

from fitness.joint import LayerBounds
from grouper import LayerLayout
from grouper.merging import MERGES

LAYOUT = LayerLayout.from_labels(LABELS, H // G)
TOLERANCE = {"rel": 1e-9, "abs": 1e-12}


def weighted_rows(attention, inputs) -> torch.Tensor:
    """Rows of K [G, d, D + 1], times the root of the queries' energy in their plane, times the inputs' root."""
    c = root(inputs.second_moment)
    rows = []
    for kv in range(G):
        k = torch.cat([attention.k[kv], attention.k_bias[kv][:, None]], 1) @ c
        scale = torch.zeros(d, dtype=torch.float64)
        for h in attention.readers_of(kv):
            q = torch.cat([attention.q[h], attention.q_bias[h][:, None]], 1) @ c
            for a, b in attention.planes.tolist():
                scale[[a, b]] += q[a].square().sum() + q[b].square().sum()
        rows.append(scale.sqrt()[:, None] * k)
    return torch.stack(rows)


def left(rows: torch.Tensor, kept: int) -> float:
    """Squared singular values beyond the `kept` largest."""
    return float(np.square(np.linalg.svd(rows.flatten(0, 1).numpy(), compute_uv=False)[kept:]).sum())


def test_they_are_the_singular_values_that_are_left():
    attention, inputs = random_attention(), random_moments()
    found = LayerBounds(attention, inputs).of(LAYOUT)
    rows = weighted_rows(attention, inputs)
    energy = float(rows.square().sum())
    in_groups = sum(left(rows[list(members)], d) for members in LAYOUT.k.members)
    assert found.k_group == pytest.approx(in_groups / energy, **TOLERANCE)
    assert found.k_layer == pytest.approx(left(rows, 2 * d) / energy, **TOLERANCE)
    v = torch.stack([
        torch.cat([torch.cat([attention.v[kv], attention.v_bias[kv][:, None]], 1)]) for kv in range(G)
    ]) @ root(inputs.second_moment)  # fmt: skip
    seen = torch.stack([torch.cat([attention.o[:, h] @ v[kv] for h in attention.readers_of(kv)]) for kv in range(G)])
    assert found.v_layer == pytest.approx(left(seen, 2 * d) / float(seen.square().sum()), **TOLERANCE)


@pytest.mark.parametrize("rotary", ROTARY.values(), ids=ROTARY)
def test_the_merge_leaves_what_is_said_of_it(rotary):
    attention, inputs = random_attention(rotary=rotary), random_moments()
    found = LayerBounds(attention, inputs).of(LAYOUT)
    merged = replace(MERGES["spectral"], rescale=False).merge(attention, LAYOUT, inputs).expanded(LAYOUT)
    alone = LayerLayout.from_labels(range(H), 1)
    assert (found.k, found.v) == pytest.approx(calibrated_errors(attention, merged, alone, inputs), rel=1e-6)


def test_some_linear_map_reaches_the_bound():
    """Keys read from d shared numbers by the best linear maps, each rotated by the definition's phases."""
    attention, inputs = random_attention(), random_moments()
    rows, c = weighted_rows(attention, inputs), root(inputs.second_moment)
    plain = torch.cat([attention.k, attention.k_bias[..., None]], -1)
    scale = rows.norm(dim=-1, keepdim=True) / (plain @ c).norm(dim=-1, keepdim=True)
    keys = torch.empty_like(plain)
    for members in map(list, LAYOUT.k.members):
        u = torch.linalg.svd(rows[members].flatten(0, 1), full_matrices=False)[0][:, :d]
        stacked = (scale[members] * plain[members]).flatten(0, 1)
        keys[members] = (u @ (u.T @ stacked)).unflatten(0, (len(members), d)) / scale[members]
    changed = replace(attention, k=keys[..., :-1], k_bias=keys[..., -1])
    own = LayerLayout.from_labels(range(G), H // G)
    k_error, v_error = calibrated_errors(attention, changed, own, inputs)
    assert v_error == 0 and k_error == pytest.approx(LayerBounds(attention, inputs).of(LAYOUT).k_group, rel=1e-9)


@pytest.mark.parametrize("kind", [*ROTARY, "head", "all"])
def test_no_bound_exceeds_what_is_reached(kind):
    for seed in range(3):
        if kind in ROTARY:
            attention, inputs = random_attention(seed, ROTARY[kind]), random_moments(seed)
        else:
            attention, inputs = normed_attention(kind, seed), tokens_and_moments(seed)[1]
        bounds = LayerBounds(attention, inputs)
        for labels in (LABELS, [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 2]):
            found = bounds.of(LayerLayout.from_labels(labels, H // G))
            assert found.k * (1 + 1e-9) >= found.k_group * (1 - 1e-9) >= found.k_layer * (1 - 2e-9) >= 0
            assert found.v * (1 + 1e-9) >= found.v_layer >= 0


def test_where_nothing_is_lost():
    """Group 0 holds complex multiples, plane by plane; group 1 a head and its rows in another order; and once all heads
    lie in the rows of two."""
    attention, inputs = random_attention(bias=False), random_moments()
    half, k = d // 2, attention.k.clone()
    planes = torch.complex(k[0, :half], k[0, half:]) * torch.tensor([2.0, 1j, 1 + 1j])[:, None]
    k[2] = torch.cat([planes.real, planes.imag])
    k[3] = k[1].roll(1, 0)
    found = LayerBounds(replace(attention, k=k), inputs).of(LAYOUT)
    alone = LayerBounds(replace(attention, k=k), inputs).of(LayerLayout.from_labels([0, 1, 0, 2], H // G))
    assert alone.k == pytest.approx(0, abs=1e-12) and alone.k_group == pytest.approx(0, abs=1e-12)
    assert found.k > 0.05 and found.k_group == pytest.approx(0, abs=1e-12)
    g = torch.Generator().manual_seed(1)
    mixed = torch.einsum("gef,fx->gex", torch.randn(G, d, 2 * d, generator=g).double(), torch.randn(2 * d, D).double())
    found = LayerBounds(replace(attention, k=mixed, v=mixed), inputs).of(LAYOUT)
    assert found.k_layer == pytest.approx(0, abs=1e-12) == pytest.approx(found.v_layer, abs=1e-12)
    assert found.k_group > 0.001 and found.v > 0.001


def test_heads_that_stay_lose_nothing():
    found = LayerBounds(random_attention(), random_moments()).of(LayerLayout.from_labels(range(G), H // G))
    assert (found.k, found.k_group, found.k_layer, found.v, found.v_layer) == (0, 0, 0, 0, 0)
