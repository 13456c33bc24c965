"""NSGA-II's parts by hand: crowding distance, tournament, survivors, patience."""

import numpy as np
from deap import base

from search.optimise.nsga2 import _survivors, _tournament, crowding, evolve
from search.options import GeneticOptions

INF = np.inf


def test_crowding_is_the_sum_of_the_gaps_between_neighbours():
    """One rank: x spans 8, y spans 10. Point 1: (3 - 0) / 8 + (10 - 4) / 10; point 2: (8 - 1) / 8 + (6 - 0) / 10."""
    points = np.array([[0.0, 10.0], [1.0, 6.0], [3.0, 4.0], [8.0, 0.0]])
    assert np.allclose(crowding(points, np.zeros(4, int)), [INF, 3 / 8 + 6 / 10, 7 / 8 + 6 / 10, INF])


def test_crowding_looks_within_a_rank_alone():
    points = np.array([[0.0, 10.0], [2.0, 9.0], [1.0, 6.0], [3.0, 8.0], [8.0, 0.0], [9.0, 7.0]])
    ranks = np.array([0, 1, 0, 1, 0, 1])
    expected = [INF, INF, 8 / 9 + 10 / 10, 7 / 9 + 2 / 10, INF, INF]
    assert np.allclose(crowding(points, ranks), expected)


def test_survivors_are_the_best_ranks_and_in_the_last_one_the_loneliest():
    scores = np.array([[1.0, 9.0], [2.0, 8.5], [2.1, 8.4], [9.0, 1.0], [9.5, 9.5], [5.0, 4.0]])
    rows = np.arange(6)[:, None]
    kept, kept_scores = _survivors(rows, scores, 4)
    # 4 is beaten; of the others the ends stay, then 5, and 2 (0.88 of room) before 1 (0.2)
    assert kept.flatten().tolist()[2:] == [5, 2] and set(kept.flatten().tolist()) == {0, 2, 3, 5}
    assert np.array_equal(kept_scores, scores[kept.flatten()])


def test_the_tournament_prefers_rank_then_room():
    ranks, room = np.array([1, 0, 0]), np.array([INF, 0.1, 0.9])
    rng = np.random.default_rng(0)
    won = np.bincount(_tournament(rng, ranks, room, 9000), minlength=3) / 9000
    assert np.allclose(won, [1 / 9, 3 / 9, 5 / 9], atol=0.02), "against itself, against worse, against any"


def toolbox_of(evaluate) -> base.Toolbox:
    toolbox = base.Toolbox()
    toolbox.register("evaluate", evaluate)
    toolbox.register("mate", lambda first, second: first)
    toolbox.register("mutate", lambda rows: rows)
    return toolbox


def test_it_stops_when_the_front_stands_still_and_reports_every_generation():
    toolbox = toolbox_of(lambda rows: np.stack([rows[:, 0], -rows[:, 0]], 1).astype(float))
    for patience, generations in ((3, 3), (0, 20)):
        told: list[tuple[int, int, str]] = []
        options = GeneticOptions(population=6, generations=20, patience=patience)
        report = lambda *a, told=told: told.append(a)  # noqa: E731
        yielded = list(evolve(toolbox, np.arange(6)[:, None], options, np.random.default_rng(0), report))
        assert [generation for generation, _, _ in told] == list(range(1, generations + 1))
        assert len(yielded) == 1, "nothing new was born"
        assert all(total == 20 and note.endswith("best error -5") for _, total, note in told)


def walking(step: int) -> base.Toolbox:
    """Individuals are numbers, their own error; every child is a parent moved by `step`."""
    toolbox = base.Toolbox()
    toolbox.register("evaluate", lambda rows: np.stack([rows[:, 0], rows[:, 0]], 1).astype(float))
    toolbox.register("mate", lambda first, second: first)
    toolbox.register("mutate", lambda rows: rows + step)
    return toolbox


def test_patience_counts_anew_after_every_better_front():
    told = []
    options, start = GeneticOptions(6, 20, patience=3), np.arange(6)[:, None]
    list(evolve(walking(-1), start, options, np.random.default_rng(0), lambda number, *_: told.append(number)))
    assert told == list(range(1, 21)), "every generation is better than the one before"


def test_parents_that_no_child_beats_survive():
    told = []
    options, start = GeneticOptions(6, 10, patience=0), np.arange(6)[:, None]
    list(evolve(walking(1), start, options, np.random.default_rng(0), lambda _done, _total, note: told.append(note)))
    assert len(told) == 10 and all(note.endswith("best error 0") for note in told)
