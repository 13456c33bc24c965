"""Queries dealt out by key norms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_tables import keyed_task

from grouper import Checkpoint, GrouperError
from grouper.allocation import allocate
from grouper.calibration.input_moments import AssumedInputs
from grouper.calibration.moments import collect_moments
from grouper.running.in_memory import InMemoryModel
from search import SearchOptions, search
from search.methods.published.key_driven import SHARES, KeyDriven, key_norms
from search.methods.task import LayerTask
from search.options import GeneticOptions


@pytest.mark.parametrize(
    "shares", [[1, 1, 1, 1], [0, 0, 0, 0], [100, 1, 1, 1], [0, 0, 0, 1e-30], [3, 2, 2, 1], [np.nan] * 4]
)
@pytest.mark.parametrize("queries", [4, 7, 16])
def test_queries_are_dealt_out_whole_and_to_every_head(shares, queries):
    sizes = allocate(np.array(shares, float), queries)
    assert sum(sizes) == queries and min(sizes) >= 1 and len(sizes) == 4
    if len(set(shares)) == 1 and queries % 4 == 0:
        assert len(set(sizes)) == 1


def test_more_key_norm_means_more_queries():
    assert allocate(np.array([3.0, 2, 2, 1]), 16) == [6, 4, 4, 2]


@pytest.mark.parametrize("shares", ["sum", "moving-average", "difference"])
def test_layouts_keep_order_and_neighbours(shares):
    found = KeyDriven(shares=shares).search_layer(keyed_task(), np.random.default_rng(0), GeneticOptions())
    assert [c.kv_heads for c in found] == list(range(1, 8))
    for c in found:
        assert c.layout.k.reader_order == list(range(8))
        assert [h for sources in c.layout.k.members for h in sources] == list(range(8))


def test_equal_keys_give_equal_shares():
    task = keyed_task(keys=np.eye(8)[None].repeat(3, 0))
    found = KeyDriven().search_layer(task, np.random.default_rng(0), GeneticOptions())
    assert {c.kv_heads: c.layout.k.sizes for c in found}[4] == (2, 2, 2, 2)


def test_key_norms_are_of_the_averaged_heads_on_each_window(reader):
    model = InMemoryModel(Checkpoint.open(reader))
    tokens = torch.randint(0, 4096, (3, 32), generator=torch.Generator().manual_seed(0))
    moments = list(collect_moments(model, tokens))
    seen = []
    hook = model.layer(1).self_attn.k_proj.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        model.model(tokens)
    hook.remove()
    k = seen[0].unflatten(-1, (8, 16))  # [windows, tokens, heads, d]
    expected = torch.stack([k[:, :, :3].mean(2).flatten(1).norm(dim=1), k[:, :, 3:].mean(2).flatten(1).norm(dim=1)], 1)
    assert np.allclose(key_norms(moments[1].keys.double().numpy(), [[0, 1, 2], [3, 4, 5, 6, 7]]), expected, rtol=1e-4)


def test_key_driven_methods_ask_for_text(reader, tmp_path):
    with pytest.raises(GrouperError, match="--text"):
        search(reader, tmp_path / "run", SearchOptions(("kdgqa",)))
    assert not (tmp_path / "run").exists()


def test_shares_are_what_the_paper_says():
    """Two windows of three heads' norms. Sum: (4, 6, 9) less the least. Moving average: 0.9 of the second window and
    0.1 of the first. Difference: what changed."""
    norms = np.array([[1.0, 4.0, 2.0], [3.0, 2.0, 7.0]])
    assert SHARES["sum"](norms).tolist() == [0, 2, 5]
    assert SHARES["moving-average"](norms) == pytest.approx([2.8, 2.2, 6.5])
    assert SHARES["difference"](norms).tolist() == [2, 2, 5]
    three = np.array([[0.0], [10.0], [20.0]])
    assert SHARES["moving-average"](three) == pytest.approx([(9 + 19) / 2])
    for name in ("moving-average", "difference"):
        assert SHARES[name](norms[:1]).tolist() == [1, 4, 2], "one window has none before it"


def test_numbers_are_rounded_before_they_are_mended():
    """1.6, 1.6 and 0.8 of 4 queries round to 2, 2 and 1; one comes off the first of the largest."""
    assert allocate(np.array([2.0, 2.0, 1.0]), 4) == [1, 2, 1]
    assert allocate(np.array([4.5, 4.4, 4.4]), 10) == [4, 3, 3], (
        "3.4, 3.3, 3.3 round to 3, 3, 3; one goes to the smallest"
    )


def test_the_head_with_the_least_norm_gets_one_query():
    """KV heads of norm 1, 1, 1 and 5: less the least, all shares are the last one's."""
    keys = np.diag([1.0, 1, 1, 25])[None].repeat(2, 0)
    found = KeyDriven().search_layer(keyed_task(4, keys), np.random.default_rng(0), GeneticOptions())
    two = {c.kv_heads: c.layout.k for c in found}[2]
    # the averaged pairs have norms sqrt(2) / 2 and sqrt(26) / 2
    assert two.sizes == (1, 3) and two.members == ((0, 1), (2, 3))


def test_shares_of_no_known_kind_are_refused():
    with pytest.raises(GrouperError, match="shares by 'luck'"):
        KeyDriven(shares="luck")


def test_without_keys_on_text_there_is_nothing_to_go_by():
    task = keyed_task()
    attention, measured = task.weights
    for inputs in (replace(measured, keys=None), AssumedInputs.from_norm(None, None, 12)):
        task = LayerTask(task.fitness, task.tables, lambda inputs=inputs: (attention, inputs))
        with pytest.raises(GrouperError, match="kdgqa method goes by the norms of keys on text"):
            KeyDriven().search_layer(task, np.random.default_rng(0), GeneticOptions())
