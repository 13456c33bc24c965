"""Positions, told by trying: which rows of a key are rotated together, from keys before and after RoPE."""

from dataclasses import dataclass

import torch
from torch import Tensor

CLOSE = 1e-6  # relative: some classes compute RoPE in float32
ORDERS = ("half", "interleaved")


@dataclass(frozen=True)
class Rotation:
    """rows: number of rotated rows of a head, the first ones; 0 without RoPE. order: see Family.rope; "" if there is no
    rotation."""

    rows: int
    order: str = ""


def planes_of(order: str, rows: int) -> Tensor:
    """Pairs of rows [rows / 2, 2] that RoPE rotates together."""
    if order == "interleaved":
        return torch.arange(rows).view(-1, 2)
    return torch.stack([torch.arange(rows // 2), torch.arange(rows // 2) + rows // 2], dim=-1)


def rotation_of(before: Tensor, after: Tensor) -> Rotation | None:
    """Rotation that turns `before` into `after`, both [batch, heads, tokens, d]; None if there is none. It depends on
    the token's place alone, and may scale all rows of a token alike."""
    if before.shape != after.shape:
        return None
    d = before.shape[-1]
    scale = (after * before).sum((0, 1, 3)) / before.square().sum((0, 1, 3))  # [tokens]
    if close(scale[:, None] * before, after):
        return Rotation(0)
    for rows in sorted({d, *(n for n in range(d - d % 2, 3, -2) if close(before[..., n:], after[..., n:]))}):
        for order in ORDERS:
            if rows >= 4 and rows % 2 == 0 and _rotates(before, after, order, rows):
                return Rotation(rows, order)
    return None


def _rotates(before: Tensor, after: Tensor, order: str, rows: int) -> bool:
    """Whether each plane is multiplied by a complex number that is the same for all heads and examples."""
    a, b = planes_of(order, rows).T
    x, y = (torch.complex(t[..., a], t[..., b]) for t in (before, after))  # [batch, heads, tokens, planes]
    factor = (y * x.conj()).sum((0, 1)) / x.abs().square().sum((0, 1))  # [tokens, planes]
    sizes = factor.abs()
    alike = torch.allclose(sizes, sizes[:, :1].expand_as(sizes), rtol=1e-5)
    return alike and close(factor * x, y) and close(before[..., rows:], after[..., rows:])


def close(one: Tensor, other: Tensor) -> bool:
    """Whether tensors are of one shape and equal up to rounding."""
    if one.shape != other.shape or one.numel() == 0:
        return one.shape == other.shape
    return bool((one - other).abs().max() <= CLOSE * (1e-30 + other.abs().max()))
