"""Rotations that bring heads together under the inputs' moment, and norms that are restored."""

import pytest
import torch
from random_layers import LABELS, ROTARY, G, H, d, random_attention, random_moments, root, with_bias

from grouper import LayerLayout
from grouper.merging.procrustes import Procrustes

LAYOUT = LayerLayout.from_labels(LABELS, H // G)


@pytest.mark.parametrize("rope", ROTARY)
def test_every_head_sees_its_own_norm_again(rope):
    """q and o carry the ratio of the old head's norm on text to the shared head's; rotations carry none."""
    attention, inputs = random_attention(21, ROTARY[rope]), random_moments(21)
    attention.k[2] *= 5
    attention.v[3] *= 7
    merged = Procrustes().merge(attention, LAYOUT, inputs)
    c = root(inputs.second_moment)
    for h in range(H):
        kv, group = h // (H // G), LAYOUT.k.group_of[h]
        for part, carrier in (("k", "q"), ("v", "o")):
            old = (with_bias(getattr(attention, part), getattr(attention, f"{part}_bias"))[kv] @ c).norm()
            shared = (with_bias(getattr(merged, part), getattr(merged, f"{part}_bias"))[group] @ c).norm()
            if carrier == "q":
                before, after = (with_bias(a.q, a.q_bias)[h].norm() for a in (attention, merged))
            else:
                before, after = (a.o[:, h].norm() for a in (attention, merged))
            assert (after / before).item() == pytest.approx((old / shared).item(), rel=1e-9)


def test_planes_are_turned_to_agree_on_text():
    """The turns that q carries bring two K heads together under the inputs' moment, not by weights alone: they differ
    by the phase of the heads' inner product."""
    attention, inputs = random_attention(22, bias=False), random_moments(22)
    merged = Procrustes().merge(attention, LAYOUT, inputs)
    a, b = attention.planes.T
    second_moment = inputs.second_moment.to(torch.complex128)
    for first, second in ((0, 2), (1, 3)):
        turns = {}
        for kv in (first, second):
            old, new = (torch.complex(x.q[2 * kv, a], x.q[2 * kv, b]) for x in (attention, merged))
            turns[kv] = (new * old.conj()).sum(-1)
            turns[kv] = turns[kv] / turns[kv].abs()
        k = with_bias(attention.k, None)
        one, other = (torch.complex(k[kv, a], k[kv, b]) for kv in (first, second))
        inner = ((one @ second_moment) * other.conj()).sum(-1)
        assert torch.allclose(turns[second] / turns[first], inner / inner.abs(), atol=1e-6)
        by_weights = (one * other.conj()).sum(-1)
        assert not torch.allclose(inner / inner.abs(), by_weights / by_weights.abs(), atol=0.1), "the text must matter"


def test_values_are_rotated_to_agree_on_text():
    """For two heads the best rotation is the polar factor of their inner product under the moment."""
    attention, inputs = random_attention(23, bias=False), random_moments(23)
    merged = Procrustes().merge(attention, LAYOUT, inputs)
    v = with_bias(attention.v, None)
    for first, second in ((0, 2), (1, 3)):
        rotations = {}
        for kv in (first, second):  # o' = o R^T scale
            rotation = torch.linalg.lstsq(attention.o[:, 2 * kv], merged.o[:, 2 * kv]).solution.T
            rotations[kv] = rotation / rotation.norm() * d**0.5
            assert torch.allclose(rotations[kv] @ rotations[kv].T, torch.eye(d).double(), atol=1e-6)
        u, _, vh = torch.linalg.svd(v[first] @ inputs.second_moment @ v[second].T)
        assert torch.allclose(rotations[first].T @ rotations[second], u @ vh, atol=1e-5)


def test_rotations_are_iterated_until_each_head_is_aligned_with_the_mean():
    attention, inputs = random_attention(23, bias=False), random_moments(23)
    c, merge = root(inputs.second_moment), Procrustes()
    v = with_bias(attention.v, None) @ c
    rotations = merge.aligned(torch.einsum("iax,jbx->ijab", v, v))
    u, _, vh = torch.linalg.svd((rotations @ v).mean(0) @ v.transpose(1, 2))
    assert (u @ vh - rotations).abs().max() < 1e-3
    k = with_bias(attention.k, None) @ c
    planes = torch.complex(k[:, : d // 2], k[:, d // 2 :])
    turns = merge.aligned_planes(torch.einsum("ipx,jpx->ijp", planes, planes.conj()))
    inner = ((turns[..., None] * planes).mean(0) * planes.conj()).sum(-1)
    assert (inner / inner.abs() - turns).abs().max() < 1e-3


def test_inner_products_say_all_that_the_heads_outputs_do(monkeypatch):
    """Three rounds on the outputs themselves, W C^(1/2), give the same rotations; and C, which is large, is not
    decomposed, which took ten times as long as all the rest."""
    attention, inputs, rounds = random_attention(24, bias=False), random_moments(24), 3
    seen = with_bias(attention.v, None) @ root(inputs.second_moment)
    shared = seen[0]
    for _ in range(rounds):
        u, _, vh = torch.linalg.svd(shared @ seen.transpose(1, 2))
        shared = (u @ vh @ seen).mean(0)
    merge = Procrustes(iterations=rounds, gain=0)
    rotations = merge.aligned(torch.einsum("iax,jbx->ijab", seen, seen))
    assert torch.allclose(rotations, u @ vh, atol=1e-12)
    for name in ("eigh", "cholesky", "qr"):
        monkeypatch.setattr(torch.linalg, name, lambda *_: pytest.fail("a large matrix was decomposed"))
    merge.merge(attention, LAYOUT, inputs)
