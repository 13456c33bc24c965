"""The exact solver against brute force."""

import itertools

import numpy as np
import pytest
from random_tables import errors, random_pairs

from search.methods.exact import optimal_partitions


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("heads", [4, 6])
def test_the_exact_solver_against_every_partition(heads, equal):
    fitness = random_pairs(7, heads)
    best = {}
    for labels in itertools.product(range(heads), repeat=heads):
        sizes = {labels.count(x) for x in labels}
        if len(set(labels)) < heads and (not equal or len(sizes) == 1):
            k = len(set(labels))
            best[k] = min(best.get(k, np.inf), fitness.errors(np.array([labels]))[0])
    found = errors(optimal_partitions(fitness, equal))
    assert found.keys() == best.keys() and all(np.isclose(found[k], best[k], rtol=1e-12) for k in best)


def test_equal_groups_have_the_size_that_their_number_asks_for():
    found = optimal_partitions(random_pairs(5, 8), equal=True)
    assert {p.groups: np.bincount(p.labels).tolist() for p in found} == {1: [8], 2: [4, 4], 4: [2, 2, 2, 2]}
