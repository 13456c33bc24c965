"""Layers with norms on q and k, and what these norms do to tokens, from their definition."""

from dataclasses import replace

import torch
from random_layers import LABELS, G, H, d, random_attention

from grouper import LayerLayout
from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments, MeasuredInputs

LAYOUT = LayerLayout.from_labels(LABELS, H // G)
DIMENSION = 20


def normed_attention(kind: str, seed: int = 0) -> Attention:
    """Heads of very different sizes, gains far from 1."""
    attention = random_attention(seed, bias=False)
    generator = torch.Generator().manual_seed(seed + 1)

    def positive(*shape):
        return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)

    attention.k *= torch.tensor([0.1, 1.0, 3.0, 10.0]).double()[:, None, None]
    shared = kind == "head"
    q_norm, k_norm = (positive(1, d).expand(n, d) if shared else positive(n, d) for n in (H, G))
    return replace(attention, q_norm=q_norm, k_norm=k_norm, qk_norm=kind)


def tokens_and_moments(seed: int = 0) -> tuple[torch.Tensor, InputMoments]:
    generator = torch.Generator().manual_seed(seed + 50)
    x = torch.randn(600, DIMENSION, generator=generator, dtype=torch.float64) * torch.logspace(0.5, -0.5, DIMENSION)
    with_one = torch.cat([x, torch.ones(600, 1, dtype=torch.float64)], 1)
    return x, MeasuredInputs(with_one.T @ with_one / 600, 600)


def behind_norms(heads: torch.Tensor, gains: torch.Tensor, kind: str, x: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, d]: what RoPE gets, from the definition of the norm."""
    y = torch.einsum("hdx,tx->thd", heads, x)
    square = y.square().mean((1, 2), keepdim=True) if kind == "all" else y.square().mean(2, keepdim=True)
    return gains * y / square.sqrt()


def score_error(before: Attention, after: Attention, x: torch.Tensor) -> float:
    """Phase-averaged squared change of scores between random tokens, over the squared scores: per plane q^H k, as
    complex numbers."""
    a, b = before.planes.T
    queries, keys = x[:300], x[300:]
    changed = energy = 0.0
    for head in range(H):
        pairs = []
        for attention, kv in ((before, head // (H // G)), (after, LAYOUT.k.group_of[head])):
            q = behind_norms(attention.q, attention.q_norm, attention.qk_norm, queries)[:, head]
            k = behind_norms(attention.k, attention.k_norm, attention.qk_norm, keys)[:, kv]
            pairs.append(
                torch.einsum("qp,kp->pqk", torch.complex(q[:, a], q[:, b]).conj(), torch.complex(k[:, a], k[:, b]))
            )
        changed += (pairs[0] - pairs[1]).abs().square().sum()
        energy += pairs[0].abs().square().sum()
    return float(changed / energy)
