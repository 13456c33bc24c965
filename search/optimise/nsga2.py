"""NSGA-II (Deb et al. 2002) on array populations: DEAP's toolbox, moocore's ranks, one numpy Generator."""

from collections.abc import Iterator

import moocore
import numpy as np
from deap import base

from grouper.progress import Progress, no_progress
from search.options import GeneticOptions


def crowding(objectives: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Crowding distance [n] within each rank, inf at its ends. objectives: [n, 2]; ranks: [n]."""
    distance = np.zeros(len(objectives))
    for column in objectives.T:
        span = max(float(np.ptp(column)), 1e-300)
        order = np.lexsort((column, ranks))
        rank, value = ranks[order], column[order]
        first, last = np.r_[True, rank[1:] != rank[:-1]], np.r_[rank[1:] != rank[:-1], True]
        gap = np.full(len(order), np.inf)
        gap[1:-1] = (value[2:] - value[:-2]) / span
        gap[first | last] = np.inf
        distance[order] += gap
    return distance


def evolve(
    toolbox: base.Toolbox,
    population: np.ndarray,
    genetic: GeneticOptions,
    rng: np.random.Generator,
    report: Progress = no_progress,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Evolve `population` [n, genes].

    The toolbox holds evaluate(rows) -> [n, 2] objectives to minimise, mate(first, second) and mutate(rows), and may
    hold improve(rows); all work on whole arrays. Yields (rows, objectives) of the newly evaluated individuals of every
    generation.
    """
    improve = getattr(toolbox, "improve", lambda rows: rows)
    parents = np.unique(improve(population), axis=0)
    scores = toolbox.evaluate(parents)
    yield parents, scores
    front, stale = _front(scores), 0
    for generation in range(1, genetic.generations + 1):
        ranks = moocore.pareto_rank(scores)
        spread = crowding(scores, ranks)
        pick = _tournament(rng, ranks, spread, 2 * genetic.population).reshape(2, -1)
        children = toolbox.mate(parents[pick[0]], parents[pick[1]])
        children = improve(toolbox.mutate(children))
        known = len(parents)
        together = np.concatenate([parents, children])
        _, first = np.unique(together, axis=0, return_index=True)
        fresh = together[np.sort(first[first >= known])]
        if len(fresh):
            fresh_scores = toolbox.evaluate(fresh)
            yield fresh, fresh_scores
            parents, scores = np.concatenate([parents, fresh]), np.concatenate([scores, fresh_scores])
            parents, scores = _survivors(parents, scores, genetic.population)
        note = f"generation {generation}, best error {scores[:, 1].min():.4g}"
        report(generation, genetic.generations, note)
        now = _front(scores)
        stale = stale + 1 if now == front else 0
        front = now
        if genetic.patience and stale >= genetic.patience:
            break


def _front(scores: np.ndarray) -> list[tuple[float, float]]:
    kept = scores[moocore.is_nondominated(scores)]
    return sorted(map(tuple, kept.tolist()))


def _tournament(rng: np.random.Generator, ranks: np.ndarray, spread: np.ndarray, n: int) -> np.ndarray:
    a, b = rng.integers(0, len(ranks), (2, n))
    a_wins = (ranks[a] < ranks[b]) | ((ranks[a] == ranks[b]) & (spread[a] >= spread[b]))
    return np.where(a_wins, a, b)


def _survivors(rows: np.ndarray, scores: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    ranks = moocore.pareto_rank(scores)
    order = np.lexsort((-crowding(scores, ranks), ranks))[:n]
    return rows[order], scores[order]
