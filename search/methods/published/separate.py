"""Separate groupings of K heads and V heads, in different numbers. Errors of K and V add, so each is searched alone.

In many models V heads are more alike than K heads. Grouped attention kernels need K and V grouped alike, so such a
layout can be measured and refined, but not exported.
"""

from dataclasses import dataclass

import numpy as np

from grouper.layout import Grouping, LayerLayout
from grouper.progress import Progress, no_progress
from search.methods.candidate import Candidate
from search.methods.method import Method
from search.methods.qcqa import any_sizes
from search.methods.task import LayerTask
from search.optimise.partition import Partition
from search.options import GeneticOptions


@dataclass(frozen=True)
class Separate(Method):
    name: str = "separate"
    paper = "ours (as in DHA, arXiv 2406.06567)"
    parts = ("k", "v")

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """The best split for every number of K heads plus V heads, among the groupings found for each."""
        heads = task.tables.heads
        alone = Partition(np.arange(heads), 0.0)
        k, v = ([*any_sizes(task.parts[part], rng, genetic, report), alone] for part in ("k", "v"))
        best: dict[int, tuple[Partition, Partition]] = {}
        for a in k:
            for b in v:
                total = a.groups + b.groups
                if total < 2 * heads and (total not in best or a.error + b.error < sum(p.error for p in best[total])):
                    best[total] = (a, b)
        found = []
        for total in sorted(best):
            groupings = (Grouping.from_labels(p.labels.tolist(), task.queries_per_kv_head) for p in best[total])
            found.append(Candidate(LayerLayout(*groupings), sum(p.error for p in best[total])))
        return found
