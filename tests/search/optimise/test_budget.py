"""Stage 2 against every choice."""

import itertools

import numpy as np

from search.optimise.budget import binary_nsga2, knapsack
from search.options import GeneticOptions


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
        options, [2] * 4, 8, np.random.default_rng(0), GeneticOptions(generations=40, patience=0, memetic=False)
    )
    assert front == [(2, 2, 2, 2), (2, 2, 8, 2), (2, 8, 8, 2), (2, 8, 8, 8), (8, 8, 8, 8)]


def test_the_papers_front_is_of_all_that_was_ever_evaluated(monkeypatch):
    """The best was born first and did not survive."""
    best, worse = np.array([[1, 1, 0], [0, 0, 0]]), np.array([[0, 1, 0], [1, 1, 1]])
    scores = {(1, 1, 0): (4.0, 1.0), (0, 0, 0): (9.0, 0.0), (0, 1, 0): (6.0, 3.0), (1, 1, 1): (3.0, 5.0)}

    def generations(*_arguments):
        for rows in (best, worse):
            yield rows, np.array([scores[tuple(row)] for row in rows.tolist()])

    monkeypatch.setattr("search.optimise.budget.evolve", generations)
    options = [{1: 0.5, 3: 0.0}] * 3
    assert binary_nsga2(options, [1] * 3, 3, np.random.default_rng(0), GeneticOptions(population=4)) == [
        (1, 1, 1), (1, 1, 3), (3, 3, 3),
    ]  # fmt: skip


def test_more_heads_for_the_same_error_are_not_on_the_front():
    assert knapsack([{1: 1.0, 2: 1.0}]) == [(1,)]
