"""Weighted merge (WGQA, arXiv 2407.10855): a shared head is sum_s w_s * W_s over its group's heads, with weights of three kinds.

scalar   one number a head                  (WGQA)
column   one a component of the head [d]    (COLWGQA: scales output channels)
row      one an input component [D]         (ROWWGQA: scales input channels)

The paper starts at the mean and learns the weights with the model. Here they start at the mean and are fitted to what attention sees on
calibration text, a least-squares problem: for V, sum over the group's query heads h of |(W_O^h (W_V^h - sum_s w_s * W_V^s)) C^(1/2)|^2; for K the
same with the query's energy in the place of W_O: per frequency plane under RoPE, as a whole matrix without. Without that weighing the
mean itself would be the optimum of scalar weights. Conjugate gradients solve the normal equations from products alone. Norms between projection
and RoPE are not taken into account.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging.folding import augmented, check_readers_are_sources, split

STEPS = 200  # of conjugate gradients, at most
ENOUGH = 1e-10  # stop at this share of the first residual

# For heads [S, d, X]: the sum of weighted heads, and what a gradient of that sum is for the weights.
KINDS: dict[str, tuple[Callable[[Tensor], tuple[int, ...]], str, str]] = {
    "scalar": (lambda heads: heads.shape[:1], "s,sdx->dx", "sdx,dx->s"),
    "column": (lambda heads: heads.shape[:2], "sd,sdx->dx", "sdx,dx->sd"),
    "row": (lambda heads: (heads.shape[0], heads.shape[2]), "sx,sdx->dx", "sdx,dx->sx"),
}


def merge(attention: Attention, layout: LayerLayout, inputs: InputMoments, kind: str = "scalar") -> Attention:
    """Raises GrouperError where query heads would read heads that theirs are not merged into."""
    check_readers_are_sources(attention, layout, "weighted")
    heads, queries = attention.kv_heads, attention.query_heads // attention.kv_heads
    k, v = augmented(attention.k, attention.k_bias), augmented(attention.v, attention.v_bias)
    o = attention.o.double().unflatten(1, (heads, queries))  # [D, G, queries, d]
    seen_of_v = torch.einsum("xgqd,xgqe->gde", o, o)  # [G, d, d]
    seen_of_k = _query_energy(attention, inputs.second)
    new_k = [fitted(k[list(s)], seen_of_k[list(s)], inputs.second, kind) for s in layout.k.sources]
    new_v = [fitted(v[list(s)], seen_of_v[list(s)], inputs.second, kind) for s in layout.v.sources]
    k, k_bias = split(torch.stack(new_k), attention.k_bias, attention.k)
    v, v_bias = split(torch.stack(new_v), attention.v_bias, attention.v)
    k_norm = (
        None if attention.k_norm is None else torch.stack([attention.k_norm[list(s)].mean(0) for s in layout.k.sources])
    )
    return replace(attention, k=k, k_bias=k_bias, k_norm=k_norm, v=v, v_bias=v_bias)


def fitted(heads: Tensor, seen: Tensor, second: Tensor, kind: str) -> Tensor:
    """heads [S, d, X], seen [S, d, d] how much each head's readers see of its components, second [X, X]. Returns [d, X]:
    argmin over w of sum_s tr(E_s^T seen_s E_s second), E_s = heads_s - sum_t w_t * heads_t."""
    if len(heads) == 1:
        return heads[0]
    shape, combine, back = KINDS[kind]
    whole = seen.sum(0)

    def normal(w: Tensor) -> Tensor:
        return torch.einsum(back, heads, whole @ torch.einsum(combine, w, heads) @ second)

    wanted = torch.einsum(back, heads, (seen @ heads).sum(0) @ second)
    w = torch.full(shape(heads), 1 / len(heads), dtype=heads.dtype, device=heads.device)
    residual = wanted - normal(w)
    direction, size = residual.clone(), residual.square().sum()
    first = size
    for _ in range(STEPS):
        if size <= ENOUGH**2 * first or size == 0:
            break
        image = normal(direction)
        curvature = (direction * image).sum()
        if curvature <= 0:  # a direction that nothing sees
            break
        step = size / curvature
        w = w + step * direction
        residual = residual - step * image
        size, before = residual.square().sum(), size
        direction = residual + size / before * direction
    return torch.einsum(combine, w, heads)


def _query_energy(attention: Attention, second: Tensor) -> Tensor:
    """[G, d, d]: E of q q^T summed over a KV head's readers, as far as it survives RoPE: rotated planes keep their energy alone."""
    q = augmented(attention.q, attention.q_bias).unflatten(0, (attention.kv_heads, -1))  # [G, queries, d, D + 1]
    gram = torch.einsum("gqdx,xy,gqey->gde", q, second, q)
    if attention.planes is None:
        return gram
    d = gram.shape[-1]
    free = torch.ones(d, dtype=torch.bool)
    free[attention.planes.flatten()] = False
    seen = gram * (free[:, None] & free)
    a, b = attention.planes.T
    energy = gram.diagonal(dim1=1, dim2=2)
    plane = (energy[:, a] + energy[:, b]) / 2
    seen[:, a, a] = seen[:, b, b] = plane
    return seen
