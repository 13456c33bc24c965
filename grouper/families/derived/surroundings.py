"""Surroundings of an attention in its layer, found in one pass: the norm before it, the module whose output joins the
residual stream, and the form of norms."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grouper.families.derived.positions import close
from grouper.families.derived.watching import Pass


@dataclass(frozen=True)
class Around:
    """norm: the norm whose output enters q, None if there is none. adds: the module whose output is added to the
    stream, `o` if it is o itself. factor: its factor there; None if no sum was seen, as where attention and MLP are
    added together. behind: the norm that reads the stream right after attention. Names are within the layer."""

    norm: str | None
    adds: str
    factor: float | None
    behind: str | None


def around(seen: Pass, layer: str, q: str, o: str) -> Around:
    """Surroundings of the attention whose modules are q and o, in a layer."""
    start = f"{layer}."
    names = [n.removeprefix(start) for n in seen.left if n.startswith(start)]
    entered = {n: seen.entered[start + n] for n in names}
    left = {n: seen.left[start + n] for n in names}
    given = entered[q]
    making = (n for n in names if n not in (q, o) and _same(left[n], given) and not _same(entered[n], given))
    before = next(making, None)
    stream = entered[before] if before is not None else given
    after = names[names.index(o) :]
    for mixed in after:
        gone = entered[mixed]
        if gone.shape != stream.shape or _same(gone, stream):
            continue
        for adds in after[: after.index(mixed)] if mixed != o else []:
            factor = _factor(gone - stream, left[adds])
            if factor is not None:
                return Around(before, adds, factor, mixed if "norm" in mixed.lower() else None)
    return Around(before, o, None, None)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and close(one, other)


def _factor(difference: Tensor, added: Tensor) -> float | None:
    """Number by which `added` was multiplied to give this difference; None if there is none."""
    if added.shape != difference.shape or not float(added.abs().max()):
        return None
    factor = (difference * added).sum() / added.square().sum()
    return float(factor) if close(factor * added, difference) else None


@torch.no_grad()
def gain_offset(norm: nn.Module, size: int, like: Tensor) -> float | None:
    """Number that a norm adds to its weight [size] for its gain, 0 or 1, where it divides by the root mean square of
    what enters; for a LayerNorm, of what is left of it without its mean. None if it is another kind of norm."""
    given = torch.randn(64, size, generator=torch.Generator().manual_seed(1)).to(like)
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    gain = given.new_ones(size) if weight is None else weight.to(given)
    gave = norm(given) - (0 if bias is None else bias.to(given))
    for base in (given, given - given.mean(-1, keepdim=True)):
        unit = base / base.square().mean(-1, keepdim=True).sqrt()
        for offset in (0.0, 1.0):
            if torch.allclose(unit * (gain + offset), gave, rtol=1e-3, atol=1e-3):
                return offset if weight is not None else 0.0
    return None


@torch.no_grad()
def subtracts_mean(norm: nn.Module, size: int, like: Tensor) -> bool:
    """Whether a norm is blind to a constant added to what enters."""
    given = torch.randn(8, size, generator=torch.Generator().manual_seed(1)).to(like)
    return torch.allclose(norm(given), norm(given + 3.0), rtol=1e-3, atol=1e-3)
