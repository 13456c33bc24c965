"""The genetic search against the exact solver."""

import numpy as np
import pytest
from random_tables import errors, random_pairs, same_groups

from fitness import PairwiseFitness
from search.methods.exact import optimal_partitions
from search.methods.qcqa import any_sizes, equal_sizes
from search.options import GeneticOptions


@pytest.mark.parametrize("seed", range(20))
def test_the_genetic_search_finds_the_exact_front(seed):
    heads = (12, 12, 9, 8, 5)[seed % 5]
    fitness = random_pairs(seed, heads)
    for method, equal in ((any_sizes, False), (equal_sizes, True)):
        found = errors(method(fitness, np.random.default_rng(seed), GeneticOptions()))
        exact = errors(optimal_partitions(fitness, equal))
        assert found.keys() == exact.keys()
        assert all(np.isclose(found[k], exact[k], rtol=1e-9) for k in exact), (method.__name__, heads)


def test_the_papers_own_algorithm_runs_and_is_not_better_than_the_optimum():
    fitness = random_pairs(0, 10)
    plain = GeneticOptions(memetic=False, patience=0, generations=30)
    exact = errors(optimal_partitions(fitness))
    found = errors(any_sizes(fitness, np.random.default_rng(0), plain))
    assert len(found) > 3 and all(found[k] >= exact[k] - 1e-9 for k in found)
    assert any(found[k] > exact[k] + 1e-9 for k in found), "plain NSGA-II in 30 generations is not expected to be exact"


def test_a_planted_grouping_is_found():
    rng = np.random.default_rng(4)
    labels = rng.permutation(16) // 4
    rows = rng.normal(size=(4, 50))[labels]
    fitness = PairwiseFitness.from_gram(rows @ rows.T)
    for method in (any_sizes, equal_sizes):
        best = {p.groups: p for p in method(fitness, np.random.default_rng(0), GeneticOptions())}[4]
        assert best.error == 0 and same_groups(best.labels, labels)


def test_the_same_seed_gives_the_same_candidates():
    fitness = random_pairs(1, 12)
    a, b = (any_sizes(fitness, np.random.default_rng(5), GeneticOptions(generations=5)) for _ in range(2))
    assert [(p.labels.tolist(), p.error) for p in a] == [(p.labels.tolist(), p.error) for p in b]


def test_what_is_noted_of_generations_is_the_least_so_far():
    """Of a plain search: groupings scored so far, and the mean over counts of the least error, which comes down."""
    fitness, notes = random_pairs(3, 10), []
    found = any_sizes(fitness, np.random.default_rng(0), GeneticOptions(24, 30, 0, memetic=False), notes=notes)
    scored, errors = zip(*notes)
    assert list(scored) == sorted(scored) and errors[-1] < errors[0]
    assert abs(errors[-1] - np.mean([p.error for p in found])) < 1e-12
