"""Attention changed where it is free: other weights that compute the same. A wrong family changes the output."""

from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention, Projection


def turned(attention: Attention, seed: int = 0) -> Attention:
    """Other weights, in float64, with the same output. Each KV head gets another basis of V, and of K all that its
    positions and norms leave free: a complex factor for each RoPE plane, another basis of unrotated rows, signs of
    planes behind a norm for each head, real factors of gains behind a norm across heads."""
    generator, attention = torch.Generator().manual_seed(seed), attention.to(torch.float64)
    changed = _other_values(attention, generator)
    if attention.qk_norm == "all":
        return _other_gains(changed, generator)
    bases = [_basis(attention, generator) for _ in range(attention.kv_heads)]
    return _in_bases(changed, torch.stack(bases))


def _numbers(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _other_values(attention: Attention, generator: torch.Generator) -> Attention:
    """V of each KV head in another basis [d, d], which o undoes."""
    d = attention.head_dim
    bases = torch.stack([_invertible(_numbers(generator, d, d)) for _ in range(attention.kv_heads)])
    inverse = torch.linalg.inv(bases)[attention.head_read]  # [H, d, d]
    v = _applied(attention.projection("v"), bases)
    o = torch.einsum("xhd,hde->xhe", attention.o, inverse)
    return replace(attention.with_projections({"v": v}), o=o)


def _invertible(random: Tensor) -> Tensor:
    """Orthogonal matrix with its columns rescaled by up to two."""
    q = torch.linalg.qr(random)[0]
    return q * (1 + torch.linspace(0, 1, len(q), dtype=q.dtype))


def _applied(projection: Projection, bases: Tensor) -> Projection:
    """Heads in other bases [heads, d, d]. Gains, which norms apply later, stay."""
    weight = torch.einsum("hde,hex->hdx", bases, projection.weight)
    bias = None if projection.bias is None else torch.einsum("hde,he->hd", bases, projection.bias)
    return replace(projection, weight=weight, bias=bias)


def _basis(attention: Attention, generator: torch.Generator) -> Tensor:
    """Change of basis of a K head [d, d] that its positions and norms leave free."""
    d = attention.head_dim
    basis = torch.eye(d, dtype=torch.float64)
    for a, b in attention.rotated_planes.tolist():
        if attention.qk_norm == "head":
            basis[a, a] = basis[b, b] = 1.0 if _numbers(generator, 1) > 0 else -1.0
            continue
        x, y = (1 + _numbers(generator, 2).abs()).tolist()
        basis[a, a], basis[a, b], basis[b, a], basis[b, b] = x, -y, y, x
    rest = sorted(set(range(d)) - set(attention.rotated_planes.flatten().tolist()))
    if rest and attention.qk_norm is None:
        basis[torch.tensor(rest)[:, None], rest] = _invertible(_numbers(generator, len(rest), len(rest)))
    return basis


def _in_bases(attention: Attention, bases: Tensor) -> Attention:
    """K heads in other bases [G, d, d], and the queries of their readers in those that undo them."""
    back = torch.linalg.inv(bases).transpose(1, 2)[attention.head_read]  # [H, d, d]
    k, q = (_applied(attention.projection("k"), bases), _applied(attention.projection("q"), back))
    return attention.with_projections({"k": k, "q": q})


def _other_gains(attention: Attention, generator: torch.Generator) -> Attention:
    """Gains behind a norm across heads: each plane of a K head times a real number, its readers' over it."""
    planes = attention.rotated_planes
    factor = 1.5 + _numbers(generator, attention.kv_heads, len(planes)).tanh()  # [G, planes]
    rows = torch.ones(attention.kv_heads, attention.head_dim, dtype=torch.float64)
    for row in planes.T:
        rows[:, row] = factor
    k, q = attention.projection("k"), attention.projection("q")
    assert k.gain is not None and q.gain is not None
    changed = {"k": replace(k, gain=k.gain * rows), "q": replace(q, gain=q.gain / rows[attention.head_read])}
    return attention.with_projections(changed)  # type: ignore[arg-type]


def copied(attention: Attention, labels: list[int]) -> Attention:
    """Attention whose KV heads with the same label are copies of the first one."""
    source = [labels.index(label) for label in labels]
    parts = {part: attention.projection(part).taken(source) for part in ("k", "v")}
    return attention.with_projections(parts)  # type: ignore[arg-type]
