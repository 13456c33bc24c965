"""From pairs to the exact error, where pairs mislead."""

import numpy as np
from random_tables import random_pairs

from fitness import PairwiseFitness
from search.optimise.partition import Partition, best_per_count
from search.optimise.settle import settled


class Misled:
    """Searches go by one table, the truth is another."""

    def __init__(self, seed: int, heads: int):
        self.heads, self.truth = heads, random_pairs(seed, heads, 20)
        noise = random_pairs(seed + 1, heads, 20).pairs
        self.surrogate = PairwiseFitness(self.truth.pairs + noise)

    @property
    def screen(self):
        return self

    def errors(self, labels):
        return self.truth.errors(labels)


class Screened(Misled):
    """A screen of its own, which is wrong by little."""

    def __init__(self, seed: int, heads: int):
        super().__init__(seed, heads)
        self.exactly_scored: list[bytes] = []
        off = np.random.default_rng(seed).normal(size=(heads, heads))
        self._screen = PairwiseFitness(self.truth.pairs * (1 + 0.02 * np.abs(off + off.T)))

    @property
    def screen(self):
        return self._screen

    def errors(self, labels):
        self.exactly_scored += [row.tobytes() for row in np.atleast_2d(labels)]
        return super().errors(labels)


def test_the_best_few_by_the_screen_get_an_exact_error_and_the_best_of_those_wins():
    fitness = Screened(1, 7)
    start = [Partition(np.roll([0, 0, 0, 0, 1, 1, 1], shift), 0.0) for shift in range(7)]
    (found,) = settled(fitness, start)
    assert len(fitness.exactly_scored) == len(set(fitness.exactly_scored)) == 3
    rows = np.array([np.frombuffer(row, found.labels.dtype) for row in fitness.exactly_scored])
    assert found.error == fitness.truth.errors(rows).min()
    assert fitness.screen.errors(rows).max() <= fitness.screen.errors(np.array([p.labels for p in start])).min()


def test_errors_are_exact_and_moves_that_help_are_made():
    fitness = Misled(0, 7)
    start = [
        Partition(np.array(row), 99.0) for row in ([0, 1, 2, 0, 1, 2, 0], [0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 2])
    ]
    found = {p.groups: p for p in settled(fitness, start)}
    assert set(found) == {2, 3}
    for k, p in found.items():
        assert p.error == fitness.errors(p.labels[None])[0]
        before = min(fitness.errors(s.labels[None])[0] for s in start if s.groups == k)
        assert p.error < before, "these starts are no optima"
        for head in range(7):  # few enough neighbours that all of them were tried
            for group in range(k):
                row = p.labels.copy()
                row[head] = group
                if len(set(row.tolist())) == k:
                    assert fitness.errors(row[None])[0] >= p.error * (1 - 1e-9)


def test_swaps_alone_keep_sizes():
    fitness = Misled(3, 6)
    p = settled(fitness, [Partition(np.array([0, 0, 0, 1, 1, 1]), 0.0)], swaps_only=True)[0]
    assert p.equal_groups and p.error < fitness.errors(np.array([[0, 0, 0, 1, 1, 1]]))[0]


def test_the_best_of_each_count_is_the_cheapest_and_ties_go_to_smaller_labels():
    rows = [([0, 1, 1], 2.0), ([0, 0, 1], 1.0), ([0, 1, 0], 1.0), ([0, 0, 0], 5.0)]
    best = best_per_count([Partition(np.array(row), error) for row, error in rows])
    assert {k: (p.labels.tolist(), p.error) for k, p in best.items()} == {1: ([0, 0, 0], 5.0), 2: ([0, 0, 1], 1.0)}


def test_where_nothing_can_be_moved_the_error_is_exact_all_the_same():
    fitness = Misled(0, 4)
    (found,) = settled(fitness, [Partition(np.zeros(4, int), 99.0)])
    assert found.error == fitness.errors(np.zeros((1, 4), int))[0]
