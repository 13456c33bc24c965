"""Operators against what the error changes by, and the groups behind labels."""

import numpy as np
import pytest
from random_tables import random_pairs

from fitness import PairwiseFitness
from search.optimise.operators import (
    agglomerate,
    crossover,
    improve,
    move_deltas,
    mutate,
    order_crossover,
    random_labels,
    swap_mutate,
    two_point,
)


@pytest.mark.parametrize("by_size", [None, np.array([0, 0, 1, 1.5, 0.2, 3, 7, 1])])
def test_move_and_swap_deltas_are_what_the_error_changes_by(by_size):
    fitness = PairwiseFitness(random_pairs(2, 7).pairs, by_size)
    rows = random_labels(np.random.default_rng(0), 20, 7)
    moves, swaps = move_deltas(fitness, rows)
    before = fitness.errors(rows)
    for n, h, g in zip(*np.nonzero(np.isfinite(moves))):
        row = rows[n].copy()
        row[h] = g
        assert len(set(row)) == len(set(rows[n])) and np.isclose(
            fitness.errors(row[None])[0] - before[n], moves[n, h, g], atol=1e-8
        )
    for n, a, b in zip(*np.nonzero(np.isfinite(swaps))):
        row = rows[n].copy()
        row[a], row[b] = rows[n][b], rows[n][a]
        assert np.isclose(fitness.errors(row[None])[0] - before[n], swaps[n, a, b], atol=1e-8)


@pytest.mark.parametrize("swaps_only", [False, True])
def test_improving_never_costs_and_keeps_the_number_of_groups(swaps_only):
    fitness = random_pairs(3, 10)
    rows = random_labels(np.random.default_rng(1), 50, 10)
    better = improve(fitness, rows, swaps_only)
    assert (fitness.errors(better) <= fitness.errors(rows) + 1e-9).all() and (better.max(1) == rows.max(1)).all()
    if swaps_only:
        assert all(sorted(np.bincount(a)) == sorted(np.bincount(b)) for a, b in zip(rows, better))


def test_operators_give_canonical_partitions():
    rng = np.random.default_rng(0)
    a, b = random_labels(rng, 40, 9), random_labels(rng, 40, 9)
    equal = np.sort(np.tile(np.arange(9) // 3, (40, 1)), axis=1)
    for rows in (a, crossover(rng, a, b), mutate(rng, a), agglomerate(random_pairs(0, 9))):
        assert all(row[i] <= max([-1, *row[:i]]) + 1 for row in rows.tolist() for i in range(9))
    for rows in (swap_mutate(rng, equal), order_crossover(rng, equal, swap_mutate(rng, equal))):
        assert (np.apply_along_axis(lambda row: np.bincount(row, minlength=3), 1, rows) == 3).all()
    assert random_labels(rng, 3, 9, np.array([2, 5, 8])).max(1).tolist() == [1, 4, 7]


def test_crossover_keeps_groups_whole():
    """The first parent is one group: a child has all of it, or groups as the second does; half of them each."""
    first, second = np.zeros((200, 9), int), np.tile(np.arange(9) % 3, (200, 1))
    children = crossover(np.random.default_rng(0), first, second)
    whole = (children == 0).all(1)
    assert (whole | (children == second).all(1)).all() and 60 < whole.sum() < 140


def test_mutation_joins_groups_now_and_then():
    """A quarter of mutations join two heads' groups; of two equal groups half of those are different ones."""
    children = mutate(np.random.default_rng(0), np.tile(np.array([0, 0, 0, 1, 1, 1]), (2000, 1)))
    assert 0.09 < (children.max(1) == 0).mean() < 0.16


def test_the_plain_crossover_happens_with_its_probability():
    first, second = np.zeros((2000, 9), int), np.tile(np.arange(9), (2000, 1))
    assert (two_point(np.random.default_rng(0), first, second, probability=0) == 0).all()
    assert (two_point(np.random.default_rng(0), first, second, probability=1) > 0).any(1).mean() > 0.5


def test_improvement_ends_where_no_move_and_no_swap_helps():
    tables = random_pairs(3, 10)
    better = improve(tables, random_labels(np.random.default_rng(1), 50, 10))
    assert all(deltas.min() > -1e-9 for deltas in move_deltas(tables, better))


def test_order_crossover_keeps_the_first_parents_number_of_groups():
    first, second = np.tile(np.arange(12) // 6, (20, 1)), np.tile(np.arange(12) // 3, (20, 1))
    assert (order_crossover(np.random.default_rng(0), first, second).max(1) == 1).all()
