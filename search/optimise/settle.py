"""From what pairs of heads say to the exact error: the last step of a search whose fitness is not a sum over pairs."""

import numpy as np

from fitness import LayerFitness, PairwiseFitness
from search.optimise.operators import move_deltas
from search.optimise.partition import Partition, best_per_count

POOL = 24  # partitions of each KV-head count that get an exact error
TRIED = 16  # moves a step that get one, the most promising by pairs


def settled(
    fitness: LayerFitness, partitions: list[Partition], swaps_only: bool = False, steps: int = 20
) -> list[Partition]:
    """Exact errors for the partitions, then for each KV-head count the best one improved by moves and swaps that exact
    errors confirm."""
    errors = fitness.errors(np.array([c.labels for c in partitions]))
    best = best_per_count([Partition(c.labels, float(e)) for c, e in zip(partitions, errors)])
    for groups, partition in best.items():
        for _ in range(steps):
            rows = _neighbours(fitness.surrogate, partition.labels, swaps_only)
            if not len(rows):
                break
            errors = fitness.errors(rows)
            i = int(errors.argmin())
            if not errors[i] < partition.error * (1 - 1e-9):
                break
            partition = Partition(rows[i], float(errors[i]))
        best[groups] = partition
    return list(best.values())


def _neighbours(surrogate: PairwiseFitness, labels: np.ndarray, swaps_only: bool) -> np.ndarray:
    """[<= TRIED, G]: the groupings one move or swap away that promise most by pairs."""
    moves, swaps = (d[0] for d in move_deltas(surrogate, labels[None]))
    swaps[np.tril_indices(len(labels))] = np.inf
    options = [] if swaps_only else [(moves[h, g], h, g, True) for h, g in zip(*np.nonzero(np.isfinite(moves)))]
    options += [(swaps[a, b], a, b, False) for a, b in zip(*np.nonzero(np.isfinite(swaps)))]
    rows = []
    for _, a, b, is_move in sorted(options)[:TRIED]:
        row = labels.copy()
        if is_move:
            row[a] = b
        else:
            row[a], row[b] = labels[b], labels[a]
        rows.append(row)
    return np.array(rows, labels.dtype).reshape(-1, len(labels))
