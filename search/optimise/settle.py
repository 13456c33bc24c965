"""Last step of a search whose fitness is not a sum over pairs: from the pairwise error to the exact error."""

from collections.abc import Sequence

import numpy as np

from fitness import LayerFitness, PairwiseFitness
from fitness.base import LayerErrors
from search.optimise.operators import move_deltas
from search.optimise.partition import Partition, best_per_count

POOL = 24  # partitions of each KV-head count that the screen scores
TRIED = 16  # moves per step that the screen scores: the most promising by pairs
FINALISTS = 3  # partitions of each count that get an exact error: the best by the screen


def settled(
    fitness: LayerFitness, partitions: list[Partition], swaps_only: bool = False, steps: int = 20
) -> list[Partition]:
    """The best partition found for each KV-head count, with its exact error. The fitness's screen scores all, improves
    the best one by moves and swaps, and selects the finalists."""
    screen = fitness.screen
    screened = _scored(screen, [p.labels for p in partitions])
    for partition in best_per_count(screened).values():
        for _ in range(steps):
            rows = _neighbours(fitness.surrogate, partition.labels, swaps_only)
            if not len(rows):
                break
            tried = _scored(screen, rows)
            screened += tried
            better = min(tried, key=lambda p: p.error)
            if not better.error < partition.error * (1 - 1e-9):
                break
            partition = better
    if screen is fitness:
        return list(best_per_count(screened).values())
    finalists = _finalists(screened)
    return list(best_per_count(_scored(fitness, finalists)).values())


def _scored(fitness: LayerErrors, rows: Sequence[np.ndarray] | np.ndarray) -> list[Partition]:
    errors = fitness.errors(np.array(rows))
    return [Partition(row, float(error)) for row, error in zip(rows, errors)]


def _finalists(screened: list[Partition]) -> list[np.ndarray]:
    """Labels of the best few partitions of each count, without duplicates."""
    by_count: dict[int, dict[bytes, Partition]] = {}
    for p in sorted(screened, key=lambda p: (p.error, p.labels.tolist())):
        best = by_count.setdefault(p.groups, {})
        if len(best) < FINALISTS:
            best.setdefault(p.labels.tobytes(), p)
    return [p.labels for best in by_count.values() for p in best.values()]


def _neighbours(surrogate: PairwiseFitness, labels: np.ndarray, swaps_only: bool) -> np.ndarray:
    """[<= TRIED, G]: groupings one move or swap away, the most promising ones by pairs."""
    heads = len(labels)
    moves, swaps = (d[0] for d in move_deltas(surrogate, labels[None]))
    swaps[np.tril_indices(heads)] = np.inf
    if swaps_only:
        moves[:] = np.inf
    flat = np.concatenate([moves.ravel(), swaps.ravel()])
    chosen = np.argsort(flat, kind="stable")[:TRIED]
    chosen = chosen[np.isfinite(flat[chosen])]
    rows = np.repeat(labels[None], len(chosen), axis=0)
    is_move, index = chosen < moves.size, np.arange(len(chosen))
    head, group = np.divmod(chosen, moves.shape[1])
    a, b = np.divmod(chosen - moves.size, heads)
    rows[index[is_move], head[is_move]] = group[is_move]
    s = ~is_move
    rows[index[s], a[s]], rows[index[s], b[s]] = labels[b[s]], labels[a[s]]
    return rows
