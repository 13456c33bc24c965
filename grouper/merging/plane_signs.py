"""Signs of RoPE planes, which norms on q and k leave free.

Both rows of a plane of a KV head may change sign, if the same rows of all its readers' queries do. The norm divides by
a root mean square, which signs do not change; gains are applied after it; and RoPE rotates a plane whatever its sign.
So no score changes, for any gains. If norms leave no other freedom (grouper.merging.normed_keys), heads that point in
opposite directions would cancel in the mean. With suitable signs they add up.
"""

from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention, Part, Projection
from grouper.layout import Groups

SWEEPS = 3


def best_signs(products: Tensor) -> Tensor:
    """Signs s [..., S] under which the sum over pairs s_i s_j products_ij is large, and at least that of all-positive
    signs. products: [..., S, S] symmetric. Two starts, the signs of the leading eigenvector and all-positive signs, are
    each improved head by head."""
    leading = torch.linalg.eigh(products)[1][..., -1]
    starts = torch.where(leading < 0, -1.0, 1.0).to(products), torch.ones_like(leading)
    first, second = (_improved(products, signs) for signs in starts)
    better = (sum_of(products, first) > sum_of(products, second))[..., None]
    return torch.where(better, first, second)


def sum_of(products: Tensor, signs: Tensor) -> Tensor:
    """Sum over pairs s_i s_j products_ij [...]. products: [..., S, S]. signs: [..., S]."""
    return torch.einsum("...i,...ij,...j->...", signs, products, signs)


def _improved(products: Tensor, signs: Tensor) -> Tensor:
    signs = signs.clone()
    for _ in range(SWEEPS):
        for head in range(signs.shape[-1]):
            others = (products[..., head, :] * signs).sum(-1) - products[..., head, head] * signs[..., head]
            signs[..., head] = torch.where(others == 0, signs[..., head], torch.sign(others))
    return signs


def aligned(products: Tensor, groups: Groups) -> Tensor:
    """Signs [G, P] of the heads of each group. products: [P, G, G], per plane the real part of the heads' inner
    products, weighted as in the sum to come. The strongest head of a group keeps its signs, and so does a head alone in
    its group."""
    signs = products.new_ones(products.shape[1], products.shape[0])
    for members in map(list, groups):
        if len(members) == 1:
            continue
        own = products[:, members][:, :, members]  # [P, S, S]
        found = best_signs(own)
        strongest = own.diagonal(dim1=1, dim2=2).argmax(1, keepdim=True)
        signs[members] = (found * found.gather(1, strongest)).T
    return signs


def with_signs(attention: Attention, signs: Tensor) -> Attention:
    """Attention with other signs of its planes. signs: [G, P], 1 or -1."""
    rows = torch.ones(attention.kv_heads, attention.head_dim)  # [G, d]
    for row in attention.rotated_planes.T:
        rows[:, row] = signs.to(rows)
    changed: dict[Part, Projection] = {}
    parts: tuple[tuple[Part, Tensor], ...] = (("k", rows), ("q", rows[attention.head_read]))
    for part, sign in parts:
        projection = attention.projection(part)
        sign = sign.to(projection.weight)
        bias = None if projection.bias is None else projection.bias * sign
        changed[part] = replace(projection, weight=projection.weight * sign[..., None], bias=bias)
    return attention.with_projections(changed)
