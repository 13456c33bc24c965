"""Stage 2: the number of KV heads of each layer.

Errors add over layers, so the best choice for every total is a multiple-choice knapsack. It is solved exactly by
dynamic programming over the total number of KV heads. The paper's own stage 2, a binary NSGA-II over one chosen
grouping per layer, is here too.
"""

from collections.abc import Sequence

import moocore
import numpy as np
from deap import base

from grouper.progress import Progress, no_progress
from search.optimise.nsga2 import evolve
from search.options import GeneticOptions

Options = Sequence[dict[int, float]]  # per layer: number of KV heads -> error of the best grouping


def knapsack(options: Options) -> list[tuple[int, ...]]:
    """The choice per layer with the lowest summed error, for every total of KV heads that can be reached.

    Returns the choices that no other beats in both total and error, by ascending total.
    """
    best = {0: 0.0}
    choices: list[dict[int, int]] = []
    for layer in options:
        counts = np.array(sorted(layer))
        costs = np.array([layer[k] for k in counts.tolist()])
        totals = np.array(sorted(best))
        sums = totals[:, None] + counts  # [totals, options]
        errors = np.array([best[t] for t in totals.tolist()])[:, None] + costs
        reached: dict[int, float] = {}
        choice: dict[int, int] = {}
        order = np.lexsort((errors.ravel(), sums.ravel()))
        for flat in order.tolist():
            total = int(sums.flat[flat])
            if total not in reached:
                reached[total] = float(errors.flat[flat])
                choice[total] = int(counts[flat % len(counts)])
        best = reached
        choices.append(choice)
    front, lowest = [], np.inf
    for total in sorted(best):
        if best[total] < lowest:
            lowest = best[total]
            front.append(_trace(choices, total))
    return front


def _trace(choices: list[dict[int, int]], total: int) -> tuple[int, ...]:
    picked = []
    for choice in reversed(choices):
        picked.append(choice[total])
        total -= choice[total]
    return tuple(reversed(picked))


def binary_nsga2(
    options: Options,
    chosen: Sequence[int],
    kv_heads: int,
    rng: np.random.Generator,
    genetic: GeneticOptions,
    report: Progress = no_progress,
) -> list[tuple[int, ...]]:
    """QCQA's stage 2: NSGA-II on (KV heads, summed error), with one bit per layer: 1 for the layer's chosen grouping, 0
    for the unchanged layer.

    chosen: per layer, the number of KV heads of the grouping from stage 1. Two-point crossover with probability 0.9,
    bit flips with probability 1 / layers. Returns the front's choices, by ascending total.
    """
    layers = len(options)
    counts = np.array(chosen)
    errors = np.array([layer[k] for layer, k in zip(options, chosen)])

    def evaluate(bits: np.ndarray) -> np.ndarray:
        return np.stack([(bits * counts + (1 - bits) * kv_heads).sum(1), bits @ errors], axis=1).astype(float)

    def mate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        cut = np.sort(rng.integers(0, layers + 1, (len(first), 2)), axis=1)
        swap = (
            (np.arange(layers) >= cut[:, :1]) & (np.arange(layers) < cut[:, 1:]) & (rng.random((len(first), 1)) < 0.9)
        )
        return np.where(swap, second, first)

    toolbox = base.Toolbox()
    toolbox.register("evaluate", evaluate)
    toolbox.register("mate", mate)
    toolbox.register("mutate", lambda bits: bits ^ (rng.random(bits.shape) < 1 / layers))
    start = rng.integers(0, 2, (genetic.population, layers))
    found: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    for rows, values in evolve(toolbox, start, genetic, rng, report):
        found.append(rows)
        scores.append(values)
    rows, values = np.concatenate(found), np.concatenate(scores)
    kept = moocore.is_nondominated(values)
    front = sorted({tuple(np.where(bits, counts, kv_heads).tolist()) for bits in rows[kept]}, key=sum)
    return front
