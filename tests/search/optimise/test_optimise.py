"""The searches against the exact solver and brute force."""

import itertools

import numpy as np
import pytest

from fitness import PairwiseFitness
from search.methods.asymgqa import _step, asymgqa, asymgqa_sym
from search.methods.exact import exact_candidates
from search.methods.qcqa import qcqa_ac, qcqa_ec
from search.optimise.budget import binary_nsga2, knapsack
from search.optimise.nsga2 import Settings
from search.optimise.operators import (
    agglomerate,
    crossover,
    improve,
    move_deltas,
    mutate,
    order_crossover,
    random_labels,
    swap_mutate,
)


def random_fitness(seed: int, heads: int) -> PairwiseFitness:
    """As random weights give: nearly orthogonal heads, so that the landscape has no slope to follow."""
    rows = np.random.default_rng(seed).normal(size=(heads, 200))
    return PairwiseFitness.from_gram(rows @ rows.T)


def errors(candidates) -> dict[int, float]:
    return {c.kv_heads: c.error for c in candidates}


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("heads", [4, 6])
def test_the_exact_solver_against_every_partition(heads, equal):
    fitness = random_fitness(7, heads)
    best = {}
    for labels in itertools.product(range(heads), repeat=heads):
        sizes = {labels.count(x) for x in labels}
        if len(set(labels)) < heads and (not equal or len(sizes) == 1):
            k = len(set(labels))
            best[k] = min(best.get(k, np.inf), fitness.errors(np.array([labels]))[0])
    found = errors(exact_candidates(fitness, equal))
    assert found.keys() == best.keys() and all(np.isclose(found[k], best[k], rtol=1e-12) for k in best)


@pytest.mark.parametrize("seed", range(20))
def test_the_genetic_search_finds_the_exact_front(seed):
    heads = (12, 12, 9, 8, 5)[seed % 5]
    fitness = random_fitness(seed, heads)
    for method, equal in ((qcqa_ac, False), (qcqa_ec, True)):
        found = errors(method(fitness, np.random.default_rng(seed), Settings()))
        exact = errors(exact_candidates(fitness, equal))
        assert found.keys() == exact.keys()
        assert all(np.isclose(found[k], exact[k], rtol=1e-9) for k in exact), (method.__name__, heads)


def test_the_papers_own_algorithm_runs_and_is_not_better_than_the_optimum():
    fitness = random_fitness(0, 10)
    plain = Settings(memetic=False, patience=0, generations=30)
    exact = errors(exact_candidates(fitness))
    found = errors(qcqa_ac(fitness, np.random.default_rng(0), plain))
    assert len(found) > 3 and all(found[k] >= exact[k] - 1e-9 for k in found)
    assert any(found[k] > exact[k] + 1e-9 for k in found), "plain NSGA-II in 30 generations is not expected to be exact"


def test_a_planted_grouping_is_found():
    rng = np.random.default_rng(4)
    labels = rng.permutation(16) // 4
    rows = rng.normal(size=(4, 50))[labels]
    fitness = PairwiseFitness.from_gram(rows @ rows.T)
    for method in (qcqa_ac, qcqa_ec):
        best = {c.kv_heads: c for c in method(fitness, np.random.default_rng(0), Settings())}[4]
        assert (
            best.error == 0 and (best.labels[:, None] == best.labels).tolist() == (labels[:, None] == labels).tolist()
        )


def test_the_same_seed_gives_the_same_candidates():
    fitness = random_fitness(1, 12)
    a, b = (qcqa_ac(fitness, np.random.default_rng(5), Settings(generations=5)) for _ in range(2))
    assert [(c.labels.tolist(), c.error) for c in a] == [(c.labels.tolist(), c.error) for c in b]


@pytest.mark.parametrize("by_size", [None, np.array([0, 0, 1, 1.5, 0.2, 3, 7, 1])])
def test_move_and_swap_deltas_are_what_the_error_changes_by(by_size):
    fitness = PairwiseFitness(random_fitness(2, 7).pairs, by_size)
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
    fitness = random_fitness(3, 10)
    rows = random_labels(np.random.default_rng(1), 50, 10)
    better = improve(fitness, rows, swaps_only)
    assert (fitness.errors(better) <= fitness.errors(rows) + 1e-9).all() and (better.max(1) == rows.max(1)).all()
    if swaps_only:
        assert all(sorted(np.bincount(a)) == sorted(np.bincount(b)) for a, b in zip(rows, better))


def test_operators_give_canonical_partitions():
    rng = np.random.default_rng(0)
    a, b = random_labels(rng, 40, 9), random_labels(rng, 40, 9)
    equal = np.sort(np.tile(np.arange(9) // 3, (40, 1)), axis=1)
    for rows in (a, crossover(rng, a, b), mutate(rng, a), agglomerate(random_fitness(0, 9))):
        assert all(row[i] <= max([-1, *row[:i]]) + 1 for row in rows.tolist() for i in range(9))
    for rows in (swap_mutate(rng, equal), order_crossover(rng, equal, swap_mutate(rng, equal))):
        assert (np.apply_along_axis(lambda row: np.bincount(row, minlength=3), 1, rows) == 3).all()
    assert random_labels(rng, 3, 9, np.array([2, 5, 8])).max(1).tolist() == [1, 4, 7]


def test_the_knapsack_is_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    options = [{k: float(e) for k, e in zip((1, 2, 4), sorted(rng.random(3), reverse=True))} for _ in range(5)]
    best = {}
    for choice in itertools.product((1, 2, 4), repeat=5):
        error = sum(layer[k] for layer, k in zip(options, choice))
        best[sum(choice)] = min(best.get(sum(choice), np.inf), error)
    front = knapsack(options)
    for choice in front:
        assert np.isclose(sum(layer[k] for layer, k in zip(options, choice)), best[sum(choice)])
    totals = {sum(c) for c in front}
    for total, error in best.items():
        assert total in totals or any(
            sum(c) < total and sum(layer[k] for layer, k in zip(options, c)) <= error for c in front
        )


def test_the_papers_stage_2_finds_the_binary_front():
    options = [{2: e, 8: 0.0} for e in (0.1, 0.5, 0.9, 0.3)]
    front = binary_nsga2(
        options, [2] * 4, 8, np.random.default_rng(0), Settings(generations=40, patience=0, memetic=False)
    )
    assert front == [(2, 2, 2, 2), (2, 2, 8, 2), (2, 8, 8, 2), (2, 8, 8, 8), (8, 8, 8, 8)]


@pytest.mark.parametrize("equal", [False, True])
def test_asymgqas_walks_find_planted_groups_and_keep_sizes(equal):
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.arange(12) // 3 if equal else np.array([0] * 6 + [1, 1, 1, 2, 2, 3]))
    rows = rng.normal(size=(4, 50))[labels]
    fitness = PairwiseFitness.from_gram(rows @ rows.T)
    found = (asymgqa_sym if equal else asymgqa)(fitness, np.random.default_rng(0), Settings(generations=120))
    best = {c.kv_heads: c for c in found}
    assert (
        best[4].error == pytest.approx(0, abs=1e-9)
        and (best[4].labels[:, None] == best[4].labels).tolist() == (labels[:, None] == labels).tolist()
    )
    assert set(best) == ({1, 2, 3, 4, 6} if equal else set(range(1, 12)))
    assert all(c.equal_groups for c in found) or not equal


def test_a_step_brings_a_head_to_one_of_its_nearest():
    """The released code swaps the two nearest heads, which leaves them apart."""
    nearest = np.array([[3], [3], [3], [0]])
    row = np.array([0, 0, 1, 1])
    _step(row, 0, nearest, np.random.default_rng(0), equal=True)
    assert row[0] == row[3] and sorted(row.tolist()) == [0, 0, 1, 1]
