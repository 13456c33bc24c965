"""Attention sinks (gpt-oss) go where their query heads go."""

import pytest
from family_samples import MHA, gathered, logits, make

from grouper import ExportOptions, HeadLayout, LayerLayout, export
from grouper.layout import Grouping

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sinks") / "gpt_oss"
    return make(folder, "gpt_oss", {**MHA, "head_dim": 16, "num_key_value_heads": 8, **EXPERTS})


def test_a_sink_is_that_of_its_query_head(original, prompt, tmp_path):
    """Groups of heads that are no neighbours: all classes put query heads in another order than they had."""
    for kind, row in (("stock", [0, 1, 0, 1, 2, 3, 3, 2]), ("padded", [0, 1, 0, 0, 2, 3, 3, 2])):
        layout = HeadLayout.from_labels([row] * 2, 8, 16)
        done = export(original, layout, tmp_path / kind, options=ExportOptions(max_padding=9.0))
        expected = logits(gathered(original, tmp_path / f"{kind}-reference", layout), prompt)
        assert done.export_class == kind and (logits(tmp_path / kind, prompt) - expected).abs().max() < 1e-4


def test_where_queries_are_shared_each_output_keeps_its_sink(original, tmp_path):
    """The self-test compares with the original's own class, whose sinks never moved."""
    kv = Grouping.from_labels([0, 1, 0, 1, 2, 3, 3, 2])
    queries = Grouping.from_labels([0, 0, 1, 1, 2, 2, 3, 3])
    layout = HeadLayout((LayerLayout(kv, kv, queries),) * 2, 8, 8, 16)
    done = export(original, layout, tmp_path / "out", merge="mean")
    assert done.export_class == "ragged" and done.self_test.passed
