"""Norms by their form, and sums by their numbers."""

import pytest
import torch
from torch import nn

from grouper.families.derived.surroundings import Around, around, gain_offset, subtracts_mean
from grouper.families.derived.watching import Pass

SIZE, LIKE = 12, torch.empty(0, dtype=torch.float64)


class Root(nn.Module):
    def __init__(self, offset: float, power: float = 0.5):
        super().__init__()
        self.offset, self.power = offset, power
        self.weight = nn.Parameter(torch.randn(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.square().mean(-1, keepdim=True) ** self.power * (self.weight + self.offset)


def test_forms_of_norms():
    assert gain_offset(Root(0.0), SIZE, LIKE) == 0.0 and gain_offset(Root(1.0), SIZE, LIKE) == 1.0
    assert gain_offset(Root(0.0, power=0.4), SIZE, LIKE) is None
    layer_norm = nn.LayerNorm(SIZE, dtype=torch.float64)
    nn.init.normal_(layer_norm.weight), nn.init.normal_(layer_norm.bias)
    assert gain_offset(layer_norm, SIZE, LIKE) == 0.0
    assert gain_offset(nn.RMSNorm(SIZE, elementwise_affine=False, dtype=torch.float64), SIZE, LIKE) == 0.0
    assert subtracts_mean(layer_norm, SIZE, LIKE) and not subtracts_mean(Root(0.0), SIZE, LIKE)


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("behind", [True, False])
def test_a_norm_before_and_the_module_that_is_added(factor, behind):
    """A layer as it is seen: norm, q, o, perhaps a norm of its output, a second norm that reads the sum."""
    random = iter(torch.randn(20, 2, 3, SIZE, generator=torch.Generator().manual_seed(0)).double())
    stream, normed, queries, out, given, later = (next(random) for _ in range(6))
    added = given if behind else out
    total = stream + factor * added
    seen = Pass()
    for name, entered, left in (
        ("norm", stream, normed), ("attn.q", normed, queries), ("attn.o", next(random), out), ("attn", normed, out),
        *([("norm_behind", out, given)] if behind else []), ("norm2", total, later),
    ):  # fmt: skip
        seen.entered[f"layers.0.{name}"], seen.left[f"layers.0.{name}"] = entered, left
    found = around(seen, "layers.0", "attn.q", "attn.o")
    assert found.norm == "norm" and found.behind == "norm2" and found.adds == ("norm_behind" if behind else "attn.o")
    assert found.factor == pytest.approx(factor)
    seen.entered["layers.0.norm2"] = stream + next(random)
    assert around(seen, "layers.0", "attn.q", "attn.o") == Around("norm", "attn.o", None, None)
