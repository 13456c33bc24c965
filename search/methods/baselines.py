"""What everybody does without a search: neighbouring heads (GQA, arXiv 2305.13245), all in one (MQA), and chance."""

import numpy as np

from fitness import LayerFitness
from grouper.layout import canonical_labels
from search.methods.candidate import Candidate
from search.optimise.nsga2 import Report, Settings
from search.optimise.operators import random_labels


def neighbour(
    fitness: LayerFitness, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """Consecutive heads share, for every number of KV heads; where that does not divide the heads, the first groups are one larger."""
    heads = fitness.heads
    rows = [np.repeat(np.arange(k), [len(group) for group in neighbour_groups(heads, k)]) for k in range(1, heads)]
    return _scored(fitness, np.array(rows))


def neighbour_groups(heads: int, kv_heads: int) -> list[list[int]]:
    return [group.tolist() for group in np.array_split(np.arange(heads), kv_heads)]


def random(
    fitness: LayerFitness, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """One random grouping for every number of KV heads; equal groups where the number divides the heads."""
    heads = fitness.heads
    rows = random_labels(rng, heads - 1, heads, np.arange(1, heads))
    for k in range(1, heads):
        if heads % k == 0:
            rows[k - 1] = canonical_labels(rng.permutation(heads) // (heads // k))
    return _scored(fitness, rows)


def _scored(fitness: LayerFitness, rows: np.ndarray) -> list[Candidate]:
    return [Candidate(row, float(error)) for row, error in zip(rows, fitness.errors(rows))]
