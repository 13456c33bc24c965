"""Heads that are each other's turns are strangers as they stand, and the same once aligned."""

from dataclasses import replace

import torch
from random_layers import random_attention

from fitness.similarity import key_similarity, value_similarity
from grouper.calibration.input_moments import InputMoments, MeasuredInputs


def inputs_of(attention) -> InputMoments:
    width = attention.q.shape[-1] + 1
    half = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MeasuredInputs(half @ half.T, 1)


def turned(attention):
    """Head 1's V is head 0's times an orthogonal matrix, its K head 0's turned by an angle in every plane."""
    d = attention.v.shape[1]
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1)).double())[0]
    attention = replace(
        attention, v=attention.v.double().clone(), k=attention.k.double().clone(), v_bias=None, k_bias=None
    )
    attention.v[1] = turn @ attention.v[0]
    a, b = attention.planes.T
    angles = torch.linspace(0.3, 2.8, len(a), dtype=torch.float64)[:, None]
    attention.k[1, a] = angles.cos() * attention.k[0, a] - angles.sin() * attention.k[0, b]
    attention.k[1, b] = angles.sin() * attention.k[0, a] + angles.cos() * attention.k[0, b]
    return attention


def test_aligned_heads_are_the_same():
    attention = turned(random_attention(0))
    inputs = inputs_of(attention)
    for found in (key_similarity(attention, inputs), value_similarity(attention, inputs)):
        assert abs(found.before[0, 1]) < 0.9 and found.aligned[0, 1] > 0.99999
        assert torch.allclose(found.before.diagonal(), torch.ones(len(found.before), dtype=torch.float64))
        assert torch.allclose(found.aligned, found.aligned.T) and found.aligned[0, 2] < 0.99
        assert (found.aligned >= found.before.abs() - 1e-6).all(), "aligned is the best there is"


def test_as_they_stand_it_is_the_cosine_of_outputs():
    attention = random_attention(0)
    inputs = inputs_of(attention)
    root = torch.linalg.cholesky(inputs.second_moment)
    heads = torch.cat([attention.v, attention.v_bias[..., None]], -1).double() @ root
    by_hand = torch.cosine_similarity(heads[2].flatten(), heads[3].flatten(), dim=0)
    assert abs(value_similarity(attention, inputs).before[2, 3] - by_hand) < 1e-9


def test_behind_a_norm_keys_cannot_be_turned():
    attention = replace(turned(random_attention(0)), qk_norm="head")
    found = key_similarity(attention, inputs_of(attention))
    assert torch.equal(found.before, found.aligned)
