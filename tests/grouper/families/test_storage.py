"""Storages: which module holds which rows, and that what is joined is split again."""

import pytest
import torch

from grouper.attention import PARTS, Projection
from grouper.errors import GrouperError
from grouper.families.storage import Fused, Separate

SEPARATE, STACKED, PER_GROUP = Separate("a.q", "a.k", "a.v", "a.o"), Fused("a.qkv", "a.o"), Fused("a.qkv", "a.o", True)
H, G, D_HEAD, D = 6, 3, 2, 5


def projections(bias: bool) -> list[Projection]:
    g = torch.Generator().manual_seed(0)
    shapes = [(heads, D_HEAD) for heads in (H, G, G)]
    made = [(torch.randn(*shape, D, generator=g), torch.randn(*shape, generator=g)) for shape in shapes]
    return [Projection(weight, shift if bias else None) for weight, shift in made]


def test_modules_and_the_rows_that_each_has():
    assert SEPARATE.modules == ("a.q", "a.k", "a.v", "a.o") and SEPARATE.rows(8, 4, 2) == {"a.q": 8, "a.k": 4, "a.v": 2}
    assert STACKED.modules == ("a.qkv", "a.o") and STACKED.rows(8, 4, 2) == {"a.qkv": 14}
    assert (STACKED.q, STACKED.k) == ("a.qkv", "a.qkv") and SEPARATE.shares_queries and not STACKED.shares_queries
    assert Separate.within("x", "out").modules == ("x.q_proj", "x.k_proj", "x.v_proj", "x.out")
    for storage in (SEPARATE, PER_GROUP):
        again = storage.renamed(lambda name: name.replace("a.", "b."))
        assert again.modules == tuple(m.replace("a.", "b.") for m in storage.modules) and type(again) is type(storage)
    assert PER_GROUP.renamed(str.upper).per_group


@pytest.mark.parametrize("storage", [SEPARATE, STACKED, PER_GROUP])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_joined_is_split_again(storage, bias):
    whole, found = projections(bias), {}
    held = storage.join(*whole)
    assert list(held) == list(storage.modules[:-1])
    for module, heads in held.items():
        assert len(heads.weight) == storage.rows(H, G, G)[module]
        found |= storage.split(module, heads, H, G)
    for part, one in zip(PARTS, whole, strict=True):
        assert torch.equal(found[part].weight, one.weight)
        assert found[part].bias is None if not bias else torch.equal(found[part].bias, one.bias)


def test_heads_lie_stacked_or_group_by_group():
    heads = [Projection(torch.full((n, 1, 1), float(kind))) for kind, n in enumerate((H, G, G))]
    (stacked,), (grouped,) = (s.join(*heads).values() for s in (STACKED, PER_GROUP))
    assert stacked.weight.flatten().tolist() == [0.0] * 6 + [1.0] * 3 + [2.0] * 3
    assert grouped.weight.flatten().tolist() == [0.0, 0.0, 1.0, 2.0] * 3
    with pytest.raises(GrouperError, match=r"a\.qkv holds 11 heads of 1, config\.json says otherwise"):
        STACKED.split("a.qkv", Projection(torch.zeros(11, 1, 1)), H, G)
