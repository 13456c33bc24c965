"""QCQA's first stage (arXiv 2406.10247): per layer, NSGA-II on (KV heads, error).

AC, arbitrary sizes: the genome is a label vector. EC, equal sizes: the genome is a permutation cut into equal blocks.
Two differences from the paper hold also with `--paper qcqa`: labels are canonical, so that equal groupings are
recognised, and the error does not change when groups are renamed (the public reproduction multiplies weights by group
numbers). A third holds only with `genetic.memetic`: every child is improved to a local optimum by single moves and
swaps, crossover keeps groups whole, and the result of greedy joining is among the first parents.
"""

from dataclasses import dataclass

import numpy as np
from deap import base

from fitness import LayerFitness
from grouper.layout import canonical_labels
from grouper.progress import Progress, no_progress
from search.methods.candidate import Candidate
from search.methods.method import Method
from search.methods.task import LayerTask
from search.optimise import operators
from search.optimise.nsga2 import evolve
from search.optimise.partition import Partition, best_per_count
from search.optimise.settle import POOL, settled
from search.options import GeneticOptions


@dataclass(frozen=True)
class QCQA(Method):
    """Entry of QCQA. equal_groups: EC instead of AC."""

    name: str = "qcqa-ac"
    equal_groups: bool = False
    paper = "QCQA, arXiv 2406.10247"

    @property
    def gives_equal_groups(self) -> bool:
        return self.equal_groups

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        search = equal_sizes if self.equal_groups else any_sizes
        return task.candidates(search(task.tables, rng, genetic, report, task.progress))


def any_sizes(
    fitness: LayerFitness,
    rng: np.random.Generator,
    genetic: GeneticOptions,
    report: Progress = no_progress,
    notes: list[tuple[int, float]] | None = None,
) -> list[Partition]:
    """The best partition found for each number of groups, with groups of any size."""
    heads = fitness.heads
    toolbox = base.Toolbox()
    if genetic.memetic:
        toolbox.register("mate", operators.crossover, rng)
        toolbox.register("mutate", operators.mutate, rng)
        start = operators.random_labels(rng, genetic.population, heads)
        start = np.concatenate([start, operators.agglomerate(fitness.surrogate)])
    else:
        toolbox.register("mate", operators.two_point, rng)
        toolbox.register("mutate", operators.reset, rng)
        start = canonical_labels(rng.integers(0, heads, (genetic.population, heads)))
    found = _front(fitness, toolbox, start, genetic, rng, report, notes, swaps_only=False)
    if genetic.memetic and fitness.surrogate is not fitness:
        # the surrogate may mislead across sizes; equal groups bound the result
        found += equal_sizes(fitness, rng, genetic, report)
        found = list(best_per_count(found + settled(fitness, found)).values())
    return found


def equal_sizes(
    fitness: LayerFitness,
    rng: np.random.Generator,
    genetic: GeneticOptions,
    report: Progress = no_progress,
    notes: list[tuple[int, float]] | None = None,
) -> list[Partition]:
    """The best partition found for each divisor of the number of heads, with groups of equal size."""
    heads = fitness.heads
    divisors = np.array([k for k in range(1, heads) if heads % k == 0])
    counts = rng.choice(divisors, genetic.population)
    counts[: len(divisors)] = divisors
    permutations = rng.permuted(np.tile(np.arange(heads), (genetic.population, 1)), axis=1)
    start = canonical_labels(permutations // (heads // counts)[:, None])
    toolbox = base.Toolbox()
    toolbox.register("mate", operators.order_crossover, rng)
    toolbox.register("mutate", operators.swap_mutate, rng)
    return _front(fitness, toolbox, start, genetic, rng, report, notes, swaps_only=True)


def _front(
    fitness: LayerFitness,
    toolbox: base.Toolbox,
    start: np.ndarray,
    genetic: GeneticOptions,
    rng: np.random.Generator,
    report: Progress,
    notes: list[tuple[int, float]] | None,
    swaps_only: bool,
) -> list[Partition]:
    """Evolve on the pairwise error, then settle on the exact error. notes: see LayerTask.progress."""
    heads, table = fitness.heads, fitness.surrogate
    if genetic.memetic:
        toolbox.register("improve", operators.improve, table, swaps_only=swaps_only)

    def evaluate(labels: np.ndarray) -> np.ndarray:
        return np.stack([labels.max(1) + 1.0, table.errors(labels)], axis=1)

    toolbox.register("evaluate", evaluate)
    pool: dict[int, list[Partition]] = {}
    scored = 0
    for rows, scores in evolve(toolbox, start, genetic, rng, report):
        for k in range(1, heads):
            here = np.flatnonzero(scores[:, 0] == k)
            best = here[np.argsort(scores[here, 1], kind="stable")[:POOL]]
            pool[k] = _shortest(pool.get(k, []) + [Partition(rows[i], float(scores[i, 1])) for i in best])
        scored += len(rows)
        if notes is not None:
            notes.append((scored, float(np.mean([p[0].error for p in pool.values() if p]))))
    found = [p for k in sorted(pool) for p in pool[k]]
    if table is not fitness:
        found = settled(fitness, found, swaps_only)
    return list(best_per_count(found).values())


def _shortest(partitions: list[Partition]) -> list[Partition]:
    """The POOL partitions of lowest error, without duplicates."""
    unique = {p.labels.tobytes(): p for p in partitions}
    return sorted(unique.values(), key=lambda p: (p.error, p.labels.tolist()))[:POOL]
