"""Budgets that no search can meet."""

import pytest

from grouper import Architecture, GrouperError
from search import SearchOptions, Selection, regroup

LLAMA = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 128,
         "num_hidden_layers": 2}  # fmt: skip
T5 = {"model_type": "t5", "num_heads": 8, "num_layers": 2, "d_model": 64, "d_kv": 16}
BERT = {"model_type": "bert", "num_attention_heads": 8, "num_hidden_layers": 2, "hidden_size": 64}
EACH = 2 * 2 * 16 * 2  # bytes of a KV head: K and V, two layers, 16 numbers of two bytes


@pytest.mark.parametrize(("config", "options", "least"), [
    (LLAMA, {}, 1 / 8), (LLAMA, {"kv_heads_multiple_of": 3}, 3 / 8), (BERT, {}, 1 / 8), (T5, {}, 1 / 8),
    (T5, {"blocks": "across"}, (8 + 1) / 16), (T5, {"blocks": "encoder"}, (4 * 8 + 2 * 1) / (6 * 8)),
])  # fmt: skip
def test_a_ratio_below_the_smallest_layout_is_refused(config, options, least):
    a, options = Architecture.of(config), SearchOptions(**options)
    for enough in (least, least + 0.01, round(least, 2)):
        Selection(kv_ratio=repr(enough)).check_reachable(a, options)
    with pytest.raises(GrouperError, match=f"the smallest of this model has {least:.1%}"):
        Selection(kv_ratio=repr(least - 0.01)).check_reachable(a, options)


def test_bytes_are_those_of_the_caches_dtype():
    a = Architecture.of(LLAMA)
    for dtype, most in (("bfloat16", EACH), ("int8", EACH // 2)):
        options = SearchOptions(kv_dtype=dtype)
        Selection(kv_bytes_per_token=most).check_reachable(a, options)
        with pytest.raises(GrouperError, match=f"within {most - 1} KV bytes per token: .* has {most} bytes"):
            Selection(kv_bytes_per_token=most - 1).check_reachable(a, options)
    Selection(layout=3).check_reachable(a, SearchOptions())


def test_it_is_refused_before_the_search(models, monkeypatch):
    monkeypatch.setattr("search.one_call.search", lambda *_, **__: pytest.fail("searched"))
    with pytest.raises(GrouperError, match=r"no layout within KV ratio 1/100: the smallest of this model has 12.5%"):
        regroup(models("llama"), kv_ratio="1/100")
