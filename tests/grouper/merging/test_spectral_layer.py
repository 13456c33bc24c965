"""What is free in the best shared head, and how it is fixed."""

import pytest
import torch
from random_layers import LABELS, ROTARY, G, H, d, random_attention, random_moments, with_bias

from grouper import LayerLayout
from grouper.merging.leading import leading_vectors
from grouper.merging.spectral import Spectral
from grouper.merging.spectral_layer import SpectralLayer, weighted_mean

LAYOUT = LayerLayout.from_labels(LABELS, H // G)


def test_v_and_o_share_their_scale_evenly():
    """In each direction of the shared head, V's squared norm is the mean of its readers' O."""
    attention, inputs = random_attention(41), random_moments(41)
    merged = Spectral().merge(attention, LAYOUT, inputs)
    v = with_bias(merged.v, merged.v_bias)
    for group, readers in enumerate(LAYOUT.v.readers):
        of_o = torch.stack([merged.o[:, h].square().sum(0) for h in readers]).mean(0)  # [d]
        assert torch.allclose(v[group].square().sum(1), of_o, rtol=1e-9)


@pytest.mark.parametrize("rope", ["rope", "partial"])
def test_the_strongest_heads_factor_is_real_and_positive_and_k_keeps_its_size(rope):
    attention, inputs = random_attention(42, ROTARY[rope]), random_moments(42)
    layer = SpectralLayer(attention, inputs)
    for sources in ([0, 2], [1, 3], [0, 1, 2, 3]):
        kappa, c = layer.shared_planes(sources)
        for plane in range(kappa.shape[0]):
            strength = c[:, plane].abs() * layer.q_energy[sources, plane].sqrt()
            strongest = c[strength.argmax(), plane]
            assert abs(strongest.imag) < 1e-9 * strongest.abs() and strongest.real > 0
            size = layer.kappa[sources, plane].abs().square().sum(-1).mean()
            assert kappa[plane].abs().square().sum().item() == pytest.approx(size.item(), rel=1e-9)


def test_unrotated_rows_keep_the_heads_mean_size():
    attention, inputs = random_attention(43, ROTARY["none"], bias=False), random_moments(43)
    layer = SpectralLayer(attention, inputs)
    shared, _ = layer.shared_unrotated([1, 3])
    wanted = attention.k[[1, 3]].square().sum((1, 2)).mean() / d
    with_constant = layer.a_k[[1, 3]].flatten(0, 1)
    u = leading_vectors(layer.centred.times(with_constant) @ with_constant.T, d)
    removed = (u.T @ with_constant)[:, -1].square() / (u.T @ with_constant).square().sum(1)
    assert torch.allclose(shared.square().sum(1), wanted * (1 - removed), rtol=1e-6)
    assert (shared[:, -1] == 0).all(), "a constant key shifts all scores alike"


def test_leading_directions_come_strongest_first_largest_entry_positive():
    gram = torch.diag(torch.tensor([1.0, 5.0, 3.0, 0.0])).double()
    assert leading_vectors(gram, 2).tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]


def test_the_weighted_mean_of_planes():
    """Plane 0: (1 * 2 + 3 * 10) / 4. Plane 1: nobody asks, the plain mean."""
    kappa = torch.tensor([[[2.0], [6.0]], [[10.0], [8.0]]], dtype=torch.complex128)  # [S, P, X]
    weight = torch.tensor([[1.0, 0.0], [3.0, 0.0]]).double()
    assert weighted_mean(kappa, weight).flatten().tolist() == [8, 7]


def test_an_unrotated_shared_key_has_no_bias():
    """A constant added to all keys shifts all scores alike."""
    attention, inputs = random_attention(43, ROTARY["none"]), random_moments(43)
    assert (attention.k_bias.abs() > 0).all() and (Spectral().merge(attention, LAYOUT, inputs).k_bias == 0).all()


@pytest.mark.parametrize("rotary", [ROTARY["none"], ROTARY["partial"]])
def test_rescaling_restores_each_heads_k_energy_unrotated_rows_included(rotary):
    """The shared head as head h sees it: through the matrix and the factors that its query was multiplied with."""
    attention, inputs = random_attention(3, rotary, bias=False), random_moments(3)
    plain, scaled = (Spectral(rescale=r).merge(attention, LAYOUT, inputs) for r in (False, True))
    second, free = inputs.second_moment, slice(rotary, d)
    centred = second - torch.outer(second[:, -1], second[:, -1])
    k = with_bias(attention.k, None)
    own = (k[:, free] @ centred * k[:, free]).sum((1, 2)) + (k[:, :rotary] @ second * k[:, :rotary]).sum((1, 2))
    for h in range(H):
        factor = (scaled.q[h] / plain.q[h]).flatten()
        assert torch.allclose(factor, factor[0].expand_as(factor))
        shared = with_bias(plain.k, None)[LAYOUT.k.group_of[h]]
        fold = torch.linalg.lstsq(attention.q[h, free].T, plain.q[h, free].T).solution.T
        rows = fold.T @ shared[free]
        seen = (rows @ centred * rows).sum()
        if rotary:
            a, b = attention.planes.T
            before, after = (torch.complex(x.q[h, a], x.q[h, b]) for x in (attention, plain))
            c = ((after * before.conj()).sum(-1) / before.abs().square().sum(-1)).conj()
            kappa = c[:, None] * torch.complex(shared[a], shared[b])
            seen = seen + (kappa @ second.to(kappa.dtype) * kappa.conj()).sum().real
        assert (factor[0] ** 2 * seen).item() == pytest.approx(own[h // 2].item(), rel=1e-6)
