"""Walks among groupings."""

import numpy as np
import pytest
from random_tables import same_groups, task_of

from fitness import PairwiseFitness
from search.methods.asymgqa import AsymGQA, take_step
from search.options import GeneticOptions


@pytest.mark.parametrize("equal", [False, True])
def test_walks_find_planted_groups_and_keep_sizes(equal):
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.arange(12) // 3 if equal else np.array([0] * 6 + [1, 1, 1, 2, 2, 3]))
    rows = rng.normal(size=(4, 50))[labels]
    task = task_of(PairwiseFitness.from_gram(rows @ rows.T))
    method = AsymGQA(equal_groups=equal)
    found = method.search_layer(task, np.random.default_rng(0), GeneticOptions(generations=120))
    best = {c.kv_heads: c for c in found}
    assert best[4].error == pytest.approx(0, abs=1e-9) and same_groups(best[4].layout.k.labels, labels)
    assert set(best) == ({1, 2, 3, 4, 6} if equal else set(range(1, 12)))
    assert all(c.layout.equal_groups for c in found) or not equal


def test_a_step_brings_a_head_to_one_of_its_nearest():
    """The released code swaps the two nearest heads, which leaves them apart."""
    nearest = np.array([[3], [3], [3], [0]])
    row = np.array([0, 0, 1, 1])
    take_step(row, 0, nearest, np.random.default_rng(0), equal_groups=True)
    assert row[0] == row[3] and sorted(row.tolist()) == [0, 0, 1, 1]
