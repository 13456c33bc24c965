"""What every merge promises, whoever adds it."""

import pytest
import torch
from random_layers import LABELS, ROTARY, G, H, random_attention, random_moments

from grouper import Grouping, LayerLayout
from grouper.families.decoders import FAMILIES
from grouper.merging import MEAN, MERGES, merge_for
from grouper.merging.base import Merge

LAYOUT = LayerLayout.from_labels(LABELS, H // G)


@pytest.mark.parametrize("rope", ROTARY)
@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_a_merge_gives_the_layouts_heads_and_leaves_those_alone_as_they_were(merge, rope):
    attention, inputs = random_attention(51, ROTARY[rope]), random_moments(51)
    merged = merge.merge(attention, LAYOUT, inputs)
    assert (merged.kv_heads, len(merged.v), merged.query_heads) == (2, 2, H)
    alone = LayerLayout.from_labels(range(G), H // G)
    same = merge.merge(attention, alone, inputs)
    for part in ("q", "k", "v", "o"):
        assert torch.allclose(getattr(same, part), getattr(attention, part), atol=1e-9), part


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_an_entry_says_what_it_is(merge):
    kinds = {family.qk_norm for family in FAMILIES.values()}
    assert merge.paper and merge.name == next(name for name, entry in MERGES.items() if entry is merge)
    assert set(merge.exact_in) <= kinds and set(merge.behind_norms) <= kinds - set(merge.exact_in)
    assert isinstance(merge.before_refinement(), Merge) and hash(merge) == hash(merge)


def test_layouts_that_only_averaging_follows_get_the_mean():
    from grouper import HeadLayout

    moved = LayerLayout.shared(Grouping(((0, 1, 2, 3, 4), (5, 6, 7)), ((0, 1), (2, 3))))
    plain = HeadLayout((LAYOUT,), H, G, 6)
    for merge in MERGES.values():
        assert merge_for(HeadLayout((LAYOUT, moved), H, G, 6), merge) == MEAN and merge_for(plain, merge) is merge


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_it_can_be_made_while_a_gpu_refuses_inexact_operations(merge):
    """The next layer is merged by a thread beside steps that refuse operations without a deterministic form."""
    torch.use_deterministic_algorithms(True)
    try:
        merged = merge.merge(random_attention(51), LAYOUT, random_moments(51))
    finally:
        torch.use_deterministic_algorithms(False)
    assert merged.kv_heads == 2
