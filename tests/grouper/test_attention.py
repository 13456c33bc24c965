"""Shapes are checked when a layer is made."""

from dataclasses import replace

import pytest
import torch
from random_layers import G, H, random_attention

from grouper import GrouperError, LayerLayout
from grouper.attention import Attention, MergedLayer


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("q", (8, 6)), ("k", (4, 5, 20)), ("v", (4, 6, 21)), ("o", (20, 8, 5)), ("q_bias", (8, 5)), ("k_bias", (5, 6)),
        ("v_bias", (4, 1)), ("o_bias", (8,)), ("q_norm", (4, 6)), ("k_norm", (4, 5)),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(field, shape):
    with pytest.raises(GrouperError, match=rf"attention has .*{field[0]}"):
        replace(random_attention(), **{field: torch.zeros(shape)})


def test_planes_are_pairs_of_rows():
    for planes in (torch.tensor([[0, 6]]), torch.tensor([[0, 1, 2]]), torch.tensor([[-1, 2]])):
        with pytest.raises(GrouperError, match="planes"):
            replace(random_attention(), planes=planes)


def test_readers_of_a_kv_head_are_neighbours():
    attention = random_attention()
    assert attention.queries_per_kv_head == H // G == 2
    assert [attention.readers_of(kv) for kv in range(G)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert attention.head_read.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_expanding_gives_every_query_head_its_own_copy():
    attention = random_attention()
    layout = LayerLayout.from_labels([0, 1, 0, 1], 2)
    merged = replace(
        attention, k=attention.k[:2], k_bias=attention.k_bias[:2], v=attention.v[:2], v_bias=attention.v_bias[:2]
    )
    whole = merged.expanded(layout)
    for head, group in enumerate([0, 0, 1, 1, 0, 0, 1, 1]):
        assert torch.equal(whole.k[head], attention.k[group]) and torch.equal(
            whole.v_bias[head], attention.v_bias[group]
        )
    assert whole.q is merged.q


def test_a_layer_in_main_memory_is_the_same_layer():
    layer = MergedLayer(random_attention(), {"mlp.weight": torch.ones(2)}, 0.5, 0.25)
    for moved in (layer.on_cpu(), layer.on_cpu(pinned=True)):
        assert torch.equal(moved.attention.q, layer.attention.q) and (moved.before, moved.after) == (0.5, 0.25)
        assert torch.equal(moved.others["mlp.weight"], torch.ones(2)) and moved is not layer


def test_projections_are_taken_out_and_put_in_with_all_that_belongs_to_them():
    whole = Attention(
        torch.ones(4, 2, 3), torch.full((2, 2, 3), 2.0), torch.full((2, 2, 3), 3.0), torch.ones(3, 4, 2),
        k_bias=torch.full((2, 2), 4.0), k_norm=torch.full((2, 2), 5.0), qk_norm="head", q_norm=torch.ones(4, 2),
    )  # fmt: skip
    k = whole.projection("k")
    assert (k.weight is whole.k, k.bias is whole.k_bias, k.gain is whole.k_norm) == (True, True, True)
    assert whole.projection("v").gain is None and whole.projection("q").bias is None
    first = k.changed(lambda heads: heads[:1] + 1)
    assert [t.unique().item() for t in (first.weight, first.bias, first.gain)] == [3, 5, 6] and len(first.bias) == 1
    changed = whole.with_projections({"k": first, "v": whole.projection("v").changed(lambda heads: -heads)})
    assert changed.k_bias is first.bias and changed.k_norm is first.gain and (changed.v == -3).all()
    assert changed.q is whole.q and changed.v_bias is None and changed.o is whole.o
