"""Baselines without a search: neighbouring heads (GQA, arXiv 2305.13245), one KV head (MQA), and random groups."""

from dataclasses import dataclass

import numpy as np

from grouper.layout import canonical_labels
from grouper.progress import Progress, no_progress
from search.methods.candidate import Candidate
from search.methods.method import Method
from search.methods.task import LayerTask
from search.optimise.operators import random_labels
from search.optimise.partition import Partition
from search.options import GeneticOptions


@dataclass(frozen=True)
class Neighbour(Method):
    name: str = "neighbour"
    paper = "GQA, MQA, arXiv 2305.13245"
    budgets = False
    baseline = True

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """Groups of consecutive heads, for every number of KV heads. If it does not divide the heads, the first groups
        have one head more."""
        heads = task.tables.heads
        sizes = ([len(group) for group in neighbour_groups(heads, k)] for k in range(1, heads))
        return scored(task, np.array([np.repeat(np.arange(len(s)), s) for s in sizes]))


@dataclass(frozen=True)
class Random(Method):
    name: str = "random"
    paper = "GQA, arXiv 2305.13245"
    budgets = False
    baseline = True

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """One random grouping for every number of KV heads, with equal groups if it divides the heads."""
        heads = task.tables.heads
        rows = random_labels(rng, heads - 1, heads, np.arange(1, heads))
        for k in range(1, heads):
            if heads % k == 0:
                rows[k - 1] = canonical_labels(rng.permutation(heads) // (heads // k))
        return scored(task, rows)


def neighbour_groups(heads: int, groups: int) -> list[list[int]]:
    """Groups of consecutive heads, as equal in size as possible.

    >>> neighbour_groups(5, 2)
    [[0, 1, 2], [3, 4]]
    """
    return [group.tolist() for group in np.array_split(np.arange(heads), groups)]


def scored(task: LayerTask, rows: np.ndarray) -> list[Candidate]:
    return task.candidates(Partition(row, float(error)) for row, error in zip(rows, task.tables.errors(rows)))
