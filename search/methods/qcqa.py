"""QCQA's first stage (arXiv 2406.10247): per layer, NSGA-II on (KV heads, error).

AC, arbitrary sizes: the genome is a label vector. EC, equal sizes: a permutation cut into equal blocks. Differences from the paper, all but
`settings.memetic` also in its published recipe: labels are canonical, so that equal groupings are recognised, and the error does not change
when groups are renamed (the public reproduction multiplies weights with group numbers). With `memetic`, every child is brought to a local
optimum by single moves and swaps, crossover keeps groups whole, and greedy joining is among the first parents.
"""

import numpy as np
from deap import base

from fitness import LayerFitness
from grouper.layout import canonical_labels
from search.methods.candidate import Candidate, best_per_count
from search.optimise import operators
from search.optimise.nsga2 import Report, Settings, nsga2
from search.optimise.settle import POOL, settle


def qcqa_ac(
    fitness: LayerFitness, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """The best grouping found for each number of KV heads, groups of any size."""
    heads = fitness.heads
    toolbox = base.Toolbox()
    if settings.memetic:
        toolbox.register("mate", operators.crossover, rng)
        toolbox.register("mutate", operators.mutate, rng)
        start = operators.random_labels(rng, settings.population, heads)
        start = np.concatenate([start, operators.agglomerate(fitness.surrogate)])
    else:
        toolbox.register("mate", _two_point, rng)
        toolbox.register("mutate", _reset, rng)
        start = canonical_labels(rng.integers(0, heads, (settings.population, heads)))
    found = _evolve(fitness, toolbox, start, settings, rng, report, swaps_only=False)
    if (
        settings.memetic and fitness.surrogate is not fitness
    ):  # a surrogate may mislead across sizes: never worse than equal groups
        found = settle(fitness, found + qcqa_ec(fitness, rng, settings, report))
    return found


def qcqa_ec(
    fitness: LayerFitness, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """The best grouping found for each divisor of the head count, groups of equal size."""
    heads = fitness.heads
    divisors = np.array([k for k in range(1, heads) if heads % k == 0])
    counts = rng.choice(divisors, settings.population)
    counts[: len(divisors)] = divisors
    permutations = rng.permuted(np.tile(np.arange(heads), (settings.population, 1)), axis=1)
    start = canonical_labels(permutations // (heads // counts)[:, None])
    toolbox = base.Toolbox()
    toolbox.register("mate", operators.order_crossover, rng)
    toolbox.register("mutate", operators.swap_mutate, rng)
    return _evolve(fitness, toolbox, start, settings, rng, report, swaps_only=True)


def _evolve(fitness, toolbox, start, settings, rng, report, swaps_only: bool) -> list[Candidate]:
    heads = fitness.heads
    table = fitness.surrogate  # evolve on what pairs say, settle on the exact error
    if settings.memetic:
        toolbox.register("improve", operators.improve, table, swaps_only=swaps_only)

    def evaluate(labels: np.ndarray) -> np.ndarray:
        return np.stack([labels.max(1) + 1.0, table.errors(labels)], axis=1)

    toolbox.register("evaluate", evaluate)
    pool: dict[int, list[Candidate]] = {}
    for rows, scores in nsga2(toolbox, start, settings, rng, report):
        for k in range(1, heads):
            here = np.flatnonzero(scores[:, 0] == k)
            best = here[np.argsort(scores[here, 1], kind="stable")[:POOL]]
            pool[k] = _shortest(pool.get(k, []) + [Candidate(rows[i], float(scores[i, 1])) for i in best])
    candidates = [c for k in sorted(pool) for c in pool[k]]
    if table is not fitness:
        candidates = settle(fitness, candidates, swaps_only)
    return list(best_per_count(candidates).values())


def _shortest(candidates: list[Candidate]) -> list[Candidate]:
    unique = {c.labels.tobytes(): c for c in candidates}
    return sorted(unique.values(), key=lambda c: (c.error, c.labels.tolist()))[:POOL]


def _two_point(rng: np.random.Generator, first: np.ndarray, second: np.ndarray, probability: float = 0.9) -> np.ndarray:
    """The genetic algorithm's own crossover on label vectors, blind to what labels mean."""
    n, heads = first.shape
    cut = np.sort(rng.integers(0, heads + 1, (n, 2)), axis=1)
    swap = (np.arange(heads) >= cut[:, :1]) & (np.arange(heads) < cut[:, 1:]) & (rng.random((n, 1)) < probability)
    return canonical_labels(np.where(swap, second, first))


def _reset(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Each label becomes a random one with probability 1 / G."""
    reset = rng.random(labels.shape) < 1 / labels.shape[1]
    return canonical_labels(np.where(reset, rng.integers(0, labels.shape[1], labels.shape), labels))
