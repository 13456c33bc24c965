"""Ward clustering of heads by their distances, cut at every number of KV heads: AsymGQA's other way to unequal groups (arXiv 2406.14963).

Distances are squared Euclidean ones of heads scaled to length one (1 - cosine, halved), for which Ward's rule is exact; the released code hands
the cosine distances themselves to a linkage that squares them.
"""

import numpy as np

from fitness import LayerFitness, PairwiseFitness
from search.methods.candidate import Candidate
from search.optimise.nsga2 import Report, Settings
from search.optimise.operators import agglomerate


def ward(
    fitness: LayerFitness, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """One grouping for every number of KV heads, groups of any size; nested, and without chance."""
    rows = agglomerate(PairwiseFitness(fitness.surrogate.distance))
    return [Candidate(row, float(error)) for row, error in zip(rows, fitness.errors(rows))]
