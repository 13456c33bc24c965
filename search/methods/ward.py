"""Ward clustering of heads by their distances, cut at every number of KV heads: AsymGQA's other method for unequal
groups (arXiv 2406.14963).

Distances are squared Euclidean ones of heads scaled to length one (1 - cosine, halved), for which Ward's rule is exact;
the released code hands the cosine distances themselves to a linkage that squares them.
"""

from dataclasses import dataclass

import numpy as np

from fitness import PairwiseFitness
from grouper.progress import Progress, no_progress
from search.methods.candidate import Candidate
from search.methods.method import Method
from search.methods.task import LayerTask
from search.optimise.operators import agglomerate
from search.optimise.partition import Partition
from search.options import GeneticOptions


@dataclass(frozen=True)
class Ward(Method):
    name: str = "ward"
    paper = "AsymGQA, arXiv 2406.14963"

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """One grouping for every number of KV heads, with groups of any size. The groupings are nested, and nothing is
        random."""
        rows = agglomerate(PairwiseFitness(task.tables.surrogate.distance))
        return task.candidates(Partition(row, float(error)) for row, error in zip(rows, task.tables.errors(rows)))
