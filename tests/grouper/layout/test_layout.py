import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grouper import GrouperError, Grouping, HeadLayout, LayerLayout
from grouper.layout import canonical_labels, groups_of

labels = st.lists(st.integers(0, 9), min_size=1, max_size=10)


@given(labels, st.permutations(range(10)))
def test_canonical_labels_forget_names(row, names):
    renamed = [names[x] for x in row]
    assert (canonical_labels(np.array(row)) == canonical_labels(np.array(renamed))).all()


@given(labels)
def test_canonical_labels_keep_the_partition(row):
    canonical = canonical_labels(np.array(row))
    assert [[a == b for b in row] for a in row] == [[a == b for b in canonical] for a in canonical]
    assert all(label <= max([-1, *canonical[:i]]) + 1 for i, label in enumerate(canonical))


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 3))
@settings(deadline=None)  # the first one read makes what reads them
def test_a_layout_survives_json(rows, queries):
    layout = HeadLayout.from_labels(rows, 6 * queries, 32)
    again = HeadLayout.from_json(layout.to_json())
    assert again == layout and hash(again) == hash(layout) and again.to_json() == layout.to_json()


def test_a_layout_with_own_sources_and_separate_k_and_v_survives_json():
    k = Grouping(((0, 1, 2), (3,)), ((0, 1), (2, 3)))
    v = Grouping.from_labels([0, 0, 0, 0])
    layout = HeadLayout((LayerLayout(k, v),), 4, 4, 8)
    assert HeadLayout.from_json(layout.to_json()) == layout
    assert layout.kv_heads == ("2/1",) and layout.export_class == "none"
    assert layout.kv_bytes_per_token("float16") == (2 + 1) * 8 * 2 and layout.kv_ratio == 3 / 8


def test_canonical_order_and_equality():
    a = Grouping(((3, 1), (2, 0)), ((3, 1), (0, 2)))
    assert a.readers == ((0, 2), (1, 3)) and a == Grouping(((0, 2), (1, 3)), ((2, 0), (1, 3)))
    assert a.group_of.tolist() == [0, 1, 0, 1]


def test_gqa_readers_are_the_queries_of_the_merged_heads():
    grouping = Grouping.from_labels([0, 1, 0], queries_per_kv_head=3)
    assert grouping.readers == ((0, 1, 2, 6, 7, 8), (3, 4, 5)) and grouping.members == ((0, 2), (1,))


@pytest.mark.parametrize(
    ("rows", "deploy"),
    [([[0, 0, 1, 1]] * 2, "stock"), ([[0, 0, 0, 1]] * 2, "padded"), ([[0, 0, 1, 1], [0, 0, 0, 1]], "padded"), ([[0] * 4,
    [0, 0, 1, 1]], "ragged")],
)  # fmt: skip
def test_deployment_classes(rows, deploy):
    assert HeadLayout.from_labels(rows, 4, 8).export_class == deploy


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 99}', '{"format": 1, "layers": [{"kv": {"readers": [[0, 0]], "sources": [[0]]}}]}'],
)
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(GrouperError):
        HeadLayout.from_json(text)


def test_groups_of():
    assert groups_of([7, 3, 7]) == ((0, 2), (1,))


def test_the_kv_ratio_is_of_the_kv_heads_that_came_in():
    """8 query heads over 4 KV heads, 3 kept in one layer and 1 in the other."""
    layout = HeadLayout.from_labels([[0, 1, 2, 2], [0, 0, 0, 0]], 8, 16)
    assert layout.kv_ratio == (3 + 1) / (4 + 4) and layout.queries_per_kv_head == 2
    assert layout.kv_bytes_per_token("float16") == 2 * (3 + 1) * 16 * 2
    assert HeadLayout.ungrouped(2, 8, 4, 16).kv_ratio == 1


def test_readers_one_group_after_the_other_and_labels_of_sources():
    grouping = Grouping(((0, 5), (1, 2, 3, 4)), ((2,), (0, 1)))
    assert grouping.reader_order == [0, 5, 1, 2, 3, 4] and grouping.labels.tolist() == [0, 0, 1]


def test_query_heads_that_change_their_v_head_leave_averaging_alone():
    k, v = Grouping.from_labels([0, 0, 1, 1]), Grouping(((0, 2), (1, 3)), ((0, 1), (2, 3)))
    layer = LayerLayout(k, v)
    assert not layer.keeps_readers(1) and HeadLayout((layer,), 4, 4, 8).only_mean


def test_a_source_just_beyond_the_models_heads_is_refused():
    beyond = LayerLayout.shared(Grouping(((0, 1), (2, 3)), ((0, 1), (2, 4))))
    with pytest.raises(GrouperError, match="beyond the model's 4"):
        HeadLayout((beyond,), 4, 4, 8)


def test_heads_that_the_model_has_not_are_refused():
    """4 query heads over 2 KV heads: of queries there are 4 to merge, of K and V 2."""
    kv, q = Grouping.from_labels([0, 1], 2), Grouping(((0, 1), (2, 3)), ((0, 2), (1, 3)))
    assert HeadLayout((LayerLayout(kv, kv, q),), 4, 2, 8).layers[0].q == q
    third = Grouping(kv.readers, ((0,), (2,)))
    with pytest.raises(GrouperError, match="layer 0 merges a head beyond the model's 2"):
        HeadLayout((LayerLayout(kv, third),), 4, 2, 8)
    with pytest.raises(GrouperError, match="beyond the model's 4"):
        HeadLayout((LayerLayout(kv, kv, Grouping(q.readers, ((0, 2), (1, 4)))),), 4, 2, 8)
    with pytest.raises(GrouperError, match="beyond the model's 2"):
        HeadLayout((LayerLayout(kv, Grouping(kv.readers, ((-1,), (1,)))),), 4, 2, 8)
    for heads in (2, 6):
        with pytest.raises(GrouperError, match=f"layer 1 groups 4 query heads, the model has {heads}"):
            HeadLayout((LayerLayout.from_labels([0, 1], heads // 2), LayerLayout.shared(kv)), heads, 2, 8)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "8"])
def test_sizes_that_are_no_whole_numbers_are_refused(size):
    layer = LayerLayout.from_labels([0])
    for name, sizes in (("query_heads", (size, 1, 8)), ("original_kv_heads", (1, size, 8)), ("head_dim", (1, 1, size))):
        with pytest.raises(GrouperError, match=f"a layout with {name} {size!r}: expected whole numbers from 1 on"):
            HeadLayout((layer,), *sizes)


def test_groups_are_equal_only_where_queries_are_not_shared():
    kv = Grouping.from_labels([0, 0, 1, 1])
    assert LayerLayout.shared(kv).equal_groups
    assert not LayerLayout(kv, kv, Grouping.from_labels([0, 1, 0, 1])).equal_groups


def test_k_and_v_grouped_differently_in_equal_numbers_are_no_export():
    layer = LayerLayout(Grouping.from_labels([0, 0, 1, 1]), Grouping.from_labels([0, 1, 0, 1]))
    assert not layer.is_shared and HeadLayout((layer,), 4, 4, 8).export_class == "none"


def of_caches(*kinds: str, heads: tuple[int, ...]) -> HeadLayout:
    """Of an encoder with a decoder, 8 heads of 16; this many KV heads in each attention."""
    layers = tuple(LayerLayout.from_labels([h % n for h in range(8)]) for n in heads)
    return HeadLayout(layers, 8, 8, 16, kinds)


def test_what_is_kept_of_tokens_and_of_the_source_counts_and_encoders_do_not():
    layout = of_caches("none", "token", "source", heads=(1, 2, 4))
    assert layout.kv_ratio == (2 + 4) / (8 + 8) and layout.weight_ratio == (1 + 2 + 4) / 24
    assert layout.kv_bytes_per_token("float16") == 2 * 2 * 16 * 2
    assert layout.kv_bytes_per_source_token("int8") == 2 * 4 * 16
    assert layout.is_cached and layout.groups_encoder and layout.export_class == "ragged"
    encoder = of_caches("none", "none", heads=(1, 2))
    assert encoder.kv_ratio == encoder.weight_ratio == 3 / 16 and not encoder.is_cached
    alike = of_caches("none", "none", heads=(2, 2))
    assert alike.export_class == "ragged", "one count and equal groups, but no class of an encoder takes them"
    assert encoder.kv_bytes_per_token() == encoder.kv_bytes_per_source_token() == 0
    across = of_caches("none", "source", heads=(8, 4))
    assert across.kv_ratio == 1 / 2 and across.is_cached and not across.groups_encoder
    again = HeadLayout.from_json(layout.to_json())
    assert again == layout and again.caches == ("none", "token", "source")
    assert layout.whole.kv_ratio == 1 and layout.whole.caches == layout.caches
    with pytest.raises(GrouperError, match="expected one of token, source, none"):
        of_caches("none", "tokens", heads=(1, 2))
    with pytest.raises(GrouperError, match="for each layer"):
        of_caches("none", heads=(1, 2))


def test_shared_queries_are_counted_and_dropped_where_nothing_is_shared():
    kv = Grouping.from_labels([0, 0, 1, 1])
    assert LayerLayout(kv, kv, Grouping.from_labels(range(4))).q is None
    shared = LayerLayout(kv, kv, Grouping.from_labels([0, 1, 0, 1]))
    assert (shared.query_heads, LayerLayout.shared(kv).query_heads) == (2, 4)
    assert HeadLayout((shared,), 4, 4, 8).export_class == "ragged" and HeadLayout((shared,), 4, 4, 8).only_mean
