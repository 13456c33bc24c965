"""Ward clustering against scipy's."""

import numpy as np
from random_tables import random_pairs, same_groups, task_of
from scipy.cluster.hierarchy import cut_tree, linkage

from fitness import PairwiseFitness
from search.methods.ward import Ward
from search.options import GeneticOptions


def test_ward_is_scipys_on_heads_of_length_one():
    rows = np.random.default_rng(3).normal(size=(9, 40))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    tables = PairwiseFitness(random_pairs(4, 9).pairs, distance=1 - unit @ unit.T)
    tree = linkage(unit, "ward")
    found = Ward().search_layer(task_of(tables), np.random.default_rng(0), GeneticOptions())
    assert [c.kv_heads for c in found] == list(range(8, 0, -1))
    for c in found:
        assert same_groups(c.layout.k.labels, cut_tree(tree, c.kv_heads).ravel())
