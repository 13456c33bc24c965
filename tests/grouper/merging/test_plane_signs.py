"""Signs of RoPE planes: free under norms, and heads that differ in them alone merge without loss."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from normed_layers import LAYOUT, behind_norms, normed_attention, score_error, tokens_and_moments
from random_layers import LABELS, G, H, d

import fitness
from fitness import FITNESSES
from grouper.attention import Attention
from grouper.merging import MERGES
from grouper.merging.plane_signs import aligned, best_signs, sum_of, with_signs


def symmetric(*shape: int, seed: int = 0) -> torch.Tensor:
    found = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return found + found.mT


@pytest.mark.parametrize("heads", [2, 3, 5, 8])
def test_signs_are_nearly_the_best_of_all_and_never_worse_than_none(heads):
    products = symmetric(200, heads)
    every = torch.tensor(list(product([1.0, -1.0], repeat=heads)), dtype=torch.float64)  # [2^S, S]
    best = torch.einsum("ki,nij,kj->nk", every, products, every).max(1).values
    found = sum_of(products, best_signs(products))
    assert (found <= best + 1e-9).all() and (found >= products.sum((1, 2)) - 1e-9).all()
    assert (found >= best - 1e-9).double().mean() >= {2: 1, 3: 0.95, 5: 0.9, 8: 0.8}[heads]
    assert (found / best).mean() > 0.98


def test_signs_of_copies_are_found():
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    for weights in (torch.ones(4), torch.tensor([1.0, 1e-3, 2.0, 0.0])):
        products = torch.outer(signs * weights, signs * weights)
        found = best_signs(products)
        assert (found * found[0] * signs == 1)[weights > 0].all() and set(found.tolist()) <= {1.0, -1.0}


def test_the_strongest_head_of_a_group_and_heads_alone_keep_their_signs():
    products = symmetric(6, 5, seed=3)
    found = aligned(products, [(0, 3), (1,), (2, 4)])
    assert found.shape == (5, 6) and (found[1] == 1).all() and (found.abs() == 1).all()
    for group in ((0, 3), (2, 4)):
        sizes = products.diagonal(dim1=1, dim2=2)[:, list(group)]  # [P, 2]
        kept = found[list(group)].T.gather(1, sizes.argmax(1, keepdim=True))
        assert (kept == 1).all()
        assert (found[group[0]] * found[group[1]] == torch.sign(products[:, group[0], group[1]])).all()


def flipped(attention: Attention, seed: int = 5) -> tuple[Attention, torch.Tensor]:
    drawn = torch.randint(0, 2, (G, len(attention.planes)), generator=torch.Generator().manual_seed(seed))
    signs = 2.0 * drawn - 1
    return with_signs(attention, signs), signs


@pytest.mark.parametrize("kind", ["head", "all"])
def test_no_score_changes_for_any_gains(kind):
    """Position by position: RoPE turns both rows of a plane by an angle."""
    attention, (x, _) = normed_attention(kind), tokens_and_moments()
    attention = replace(attention, k_bias=None, q_bias=None)
    other, signs = flipped(attention)
    assert (signs == -1).any() and not torch.equal(other.k, attention.k)
    a, b = attention.planes.T
    scores = []
    for one in (attention, other):
        q = behind_norms(one.q, one.q_norm, kind, x[:40])  # [40, H, d]
        k = behind_norms(one.k, one.k_norm, kind, x[40:80])[:, attention.head_read]
        turns = torch.exp(1j * torch.rand(40, len(a), generator=torch.Generator().manual_seed(1)).double() * 7)
        q, k = (torch.complex(part[..., a], part[..., b]) for part in (q, k))
        scores.append(torch.einsum("qhp,khp->hqk", q * turns[:, None], k.conj() * turns[:, None].flip(0)))
    assert torch.allclose(*scores, rtol=0, atol=1e-12 * scores[0].abs().max())


def test_biases_change_with_their_rows():
    attention = normed_attention("head")
    attention = replace(attention, k_bias=torch.ones(G, d).double(), q_bias=torch.ones(H, d).double())
    other, signs = flipped(attention)
    for part in ("k", "q"):
        old, new = (one.projection(part) for one in (attention, other))
        assert torch.equal(new.bias[..., None] * new.weight, old.bias[..., None] * old.weight)
    assert torch.equal(other.k_bias[:, attention.planes[:, 0]], signs.double())


@pytest.mark.parametrize("merge", ["spectral", "procrustes"])
def test_heads_that_differ_in_signs_alone_merge_without_loss(merge):
    attention, (x, inputs) = normed_attention("head"), tokens_and_moments()
    signs = torch.ones(G, len(attention.planes))
    for copy, source in ((2, 0), (3, 1)):
        attention.k[copy] = 7 * attention.k[source]
        signs[copy] = torch.tensor([1.0, -1.0, -1.0])[: len(attention.planes)]
    planted = with_signs(attention, signs)
    merged = MERGES.named(merge).merge(planted, LAYOUT, inputs)
    assert score_error(planted, merged, x) < 1e-20
    assert score_error(planted, MERGES.named("mean").merge(planted, LAYOUT, inputs), x) > 0.1


def test_the_fitness_knows_that_signs_are_free():
    attention, (_, inputs) = normed_attention("head"), tokens_and_moments()
    for copy, source in ((2, 0), (3, 1)):
        attention.k[copy] = attention.k[source]
    planted = with_signs(attention, torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None].expand(G, len(attention.planes)))
    errors = FITNESSES["spectral"].tables(planted, inputs, part="k").errors
    assert errors(np.array([LABELS]))[0] < 1e-9


def test_signs_lower_the_error_of_random_heads_and_the_fitness_says_so():
    """Of two random heads the better of sum and difference; merged by the mean behind the norm in both cases."""
    ratios = []
    for seed in range(6):
        attention, (_, inputs) = normed_attention("head", seed), tokens_and_moments(seed)
        merged = MERGES["spectral"].before_refinement().merge(attention, LAYOUT, inputs)
        k, v = fitness.calibrated_errors(attention, merged, LAYOUT, inputs)
        told = FITNESSES["spectral"].tables(attention, inputs).errors(np.array([LABELS]))[0]
        ratios.append(told / (k + v))
    assert all(0.5 < ratio < 1.5 for ratio in ratios), ratios
