"""Walks among groupings."""

import numpy as np
import pytest
from random_tables import random_pairs, same_groups, task_of

from fitness import PairwiseFitness
from search.methods.asymgqa import AsymGQA, take_step
from search.options import GeneticOptions


def noting(told: list[float]):
    """A progress that notes the best error told."""
    return lambda _done, _total, note: told.append(float(note.split()[-1]))


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


def judged_walk(method: AsymGQA, heads: int = 8, steps: int = 1500, seed: int = 0) -> list[float]:
    """What each step of a judged walk leaves standing, where every grouping that is tried is worse than all before."""
    scores = iter(range(10**6))
    judge = lambda rows: np.array([float(next(scores)) for _ in rows])  # noqa: E731
    told = []
    tables = PairwiseFitness(np.ones((heads, heads)) - np.eye(heads))
    method.walk(
        tables,
        np.random.default_rng(seed),
        GeneticOptions(generations=steps),
        3,
        noting(told),
        judge,
    )
    assert len(told) == steps
    return told


def test_a_worse_step_is_taken_one_time_in_ten_and_so_is_a_new_start():
    """Every step is worse, so that the standing score changes only where one was taken all the same."""
    for method in (AsymGQA(restart=0, judged_steps=1500), AsymGQA(accept_worse=0, judged_steps=1500)):
        assert 0.07 < len(set(judged_walk(method))) / 1500 < 0.13
    stubborn = AsymGQA(restart=0, accept_worse=0, judged_steps=1500)
    assert set(judged_walk(stubborn)) == {0.0}
    willing = AsymGQA(restart=0, accept_worse=1, judged_steps=1500)
    assert judged_walk(willing) == [float(step) for step in range(1, 1501)]


def test_a_better_step_is_always_taken():
    scores = iter(range(10**6, 0, -1))
    told = []
    AsymGQA(restart=0, accept_worse=0, judged_steps=50).walk(
        PairwiseFitness(np.ones((6, 6)) - np.eye(6)), np.random.default_rng(0), GeneticOptions(generations=50), 2,
        noting(told), lambda rows: np.array([float(next(scores)) for _ in rows]),
    )  # fmt: skip
    assert told == [10.0**6 - step for step in range(1, 51)]


@pytest.mark.parametrize("equal", [False, True])
def test_walks_go_by_distances_not_by_errors(equal, monkeypatch):
    seen = []
    monkeypatch.setattr("search.methods.asymgqa.take_step", lambda row, head, near, rng, equal: seen.append(near))
    distance = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    pairs = 10 - distance
    np.fill_diagonal(pairs, 0)
    tables = PairwiseFitness(pairs, distance=distance)
    AsymGQA(equal_groups=equal).walk(tables, np.random.default_rng(0), GeneticOptions(generations=1), 2)
    assert seen[0].tolist() == [[1, 2, 3], [0, 2, 3], [1, 3, 0], [2, 4, 1], [3, 5, 2], [4, 3, 2]]


def test_the_last_head_of_a_group_stays():
    row = np.array([0, 1, 1, 1])
    take_step(row, 0, np.array([[1], [0], [0], [0]]), np.random.default_rng(0), equal_groups=False)
    assert row.tolist() == [0, 1, 1, 1]
    take_step(row, 2, np.array([[1], [0], [0], [0]]), np.random.default_rng(0), equal_groups=False)
    assert row.tolist() == [0, 1, 0, 1]


def test_the_judge_steers_and_the_fitness_says_what_was_found():
    tables = random_pairs(0, 6)
    judge = lambda rows: np.full(len(rows), -7.0)  # noqa: E731
    found = AsymGQA().walk(tables, np.random.default_rng(0), GeneticOptions(generations=3), 2, judge=judge)
    assert found.error == tables.errors(found.labels[None])[0] > 0


def test_a_step_goes_to_any_of_the_nearest_heads():
    reached = set()
    for seed in range(60):
        row = np.array([0, 0, 1, 2, 3])
        take_step(row, 0, np.array([[2, 3, 4]] * 5), np.random.default_rng(seed), False)
        reached.add(int(row[0]))
    assert reached == {1, 2, 3}
