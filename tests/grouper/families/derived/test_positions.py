"""Rotations of keys, told from numbers."""

import pytest
import torch

from grouper.families.derived.positions import Rotation, close, planes_of, rotation_of

BATCH, HEADS, TOKENS, D = 2, 3, 12, 16


def keys() -> torch.Tensor:
    return torch.randn(BATCH, HEADS, TOKENS, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rotated(given: torch.Tensor, order: str, rows: int, scale: float = 1.0) -> torch.Tensor:
    """By hand: row a and b of a plane at token t turned by t times the plane's speed."""
    out = given.clone()
    for plane, (a, b) in enumerate(planes_of(order, rows).tolist()):
        angle = torch.arange(TOKENS, dtype=torch.float64) * 100 ** (-plane / (rows // 2))
        x, y = given[..., a], given[..., b]
        out[..., a], out[..., b] = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    return out * scale


@pytest.mark.parametrize("order", ["half", "interleaved"])
@pytest.mark.parametrize("rows", [4, 8, 10, 16])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_rows_and_order_are_told(order, rows, scale):
    found = rotation_of(keys(), rotated(keys(), order, rows, scale if rows == D else 1.0))
    assert found == Rotation(rows, order)


def test_no_rotation_and_none_of_these():
    assert rotation_of(keys(), keys()) == Rotation(0)
    assert rotation_of(keys(), 3 * keys()) == Rotation(0), "a scale is no rotation"
    by_token = torch.linspace(1, 2, TOKENS, dtype=torch.float64)[:, None]
    assert rotation_of(keys(), by_token * keys()) == Rotation(0)
    assert rotation_of(keys(), keys().flip(-1)) is None
    assert rotation_of(keys(), keys() + 1) is None
    assert rotation_of(keys(), keys()[:, :2]) is None
    of_heads = rotated(keys(), "half", D)
    of_heads[:, 0] = keys()[:, 0]
    assert rotation_of(keys(), of_heads) is None, "the same for all heads"


def test_planes_and_closeness():
    assert planes_of("half", 4).tolist() == [[0, 2], [1, 3]] and planes_of("interleaved", 4).tolist() == [
        [0, 1],
        [2, 3],
    ]
    assert close(keys(), keys() * (1 + 1e-8)) and not close(keys(), keys() * (1 + 1e-4))
    assert not close(keys(), keys()[:1]) and close(keys()[:0], keys()[:0])
