"""What everybody does without a search."""

import numpy as np
from random_tables import random_pairs, task_of

from search.methods.baselines import Neighbour, Random
from search.options import GeneticOptions


def test_neighbours_share_and_the_first_groups_are_larger():
    tables = random_pairs(0, 5)
    found = Neighbour().search_layer(task_of(tables), np.random.default_rng(0), GeneticOptions())
    assert [c.layout.k.members for c in found] == [
        ((0, 1, 2, 3, 4),), ((0, 1, 2), (3, 4)), ((0, 1), (2, 3), (4,)), ((0, 1), (2,), (3,), (4,)),
    ]  # fmt: skip
    assert [c.error for c in found] == [tables.errors(c.layout.k.labels[None])[0] for c in found]


def test_chance_gives_every_count_and_equal_groups_where_they_are_possible():
    found = Random().search_layer(task_of(random_pairs(0, 6)), np.random.default_rng(0), GeneticOptions())
    assert [c.kv_heads for c in found] == [1, 2, 3, 4, 5]
    assert all(found[k - 1].layout.equal_groups for k in (1, 2, 3))
    other = Random().search_layer(task_of(random_pairs(0, 6)), np.random.default_rng(1), GeneticOptions())
    assert any(a.layout != b.layout for a, b in zip(found, other))
