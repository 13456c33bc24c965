"""AsymGQA's searches (arXiv 2406.14963): random walks among groupings, guided by the nearest heads.

Symmetric: groups of equal size, from a random start. A step swaps a random head into the group of one of its 3 nearest
heads. It is kept if the error falls, else with probability 0.1; with probability 0.1 the walk restarts. Asymmetric: the
same with moves instead of swaps, so that sizes change. Nearness is by the fitness's distances: with `--fitness
activation` the paper's, 1 - cosine of outputs on text; with `weight`, of weights.

A step is judged by the fitness (fast), or by the merged model's loss on calibration text held out from everything else
(slow; the paper uses validation accuracy on the task). For that loss, earlier layers have their groupings of the same
count, and later layers are unchanged.

The authors' released code swaps a head with its nearest one, so that the two never share a group, and overwrites its
distances on the way. Here the head takes the place of another member of that group, and the distances stay.
"""

from dataclasses import dataclass

import numpy as np

from fitness import LayerFitness
from grouper.layout import canonical_labels
from grouper.progress import Progress, no_progress
from search.methods.candidate import Candidate
from search.methods.method import Method
from search.methods.task import Judge, LayerTask
from search.optimise.operators import random_labels
from search.optimise.partition import Partition, best_per_count
from search.options import GeneticOptions


@dataclass(frozen=True)
class AsymGQA(Method):
    """Entry of AsymGQA. equal_groups: the symmetric form. nearest: number of heads that a step chooses from.
    accept_worse, restart: probabilities. walks: parallel walks for each number of KV heads; each has as many steps as
    the search has generations. judged_walks, judged_steps: the same if steps are judged by the merged model's loss, as
    in the released code."""

    name: str = "asymgqa"
    equal_groups: bool = False
    nearest: int = 3
    accept_worse: float = 0.1
    restart: float = 0.1
    walks: int = 8
    judged_walks: int = 1
    judged_steps: int = 10
    paper = "AsymGQA, arXiv 2406.14963"
    judged = True

    @property
    def gives_equal_groups(self) -> bool:
        return self.equal_groups

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """One grouping for every number of KV heads; with equal groups, for every divisor of the number of heads."""
        judge, counts = task.judges.get(self.name), self.counts(task.tables.heads)
        return task.candidates(self.walk(task.tables, rng, genetic, k, report, judge) for k in counts)

    def counts(self, heads: int) -> list[int]:
        """Numbers of KV heads to search for."""
        return [k for k in range(1, heads) if not self.equal_groups or heads % k == 0]

    def judged_groupings(self, heads: int, genetic: GeneticOptions) -> int:
        steps = min(self.judged_steps, genetic.generations)
        return self.judged_walks * sum(1 + (steps if count > 1 else 0) for count in self.counts(heads))

    def walk(
        self,
        fitness: LayerFitness,
        rng: np.random.Generator,
        genetic: GeneticOptions,
        groups: int,
        report: Progress = no_progress,
        judge: Judge | None = None,
    ) -> Partition:
        """The best partition into `groups` groups that the walks met."""
        near = nearest_heads(fitness.surrogate.distance, self.nearest)
        walks, steps = (self.walks, genetic.generations) if judge is None else (self.judged_walks, self.judged_steps)
        scored = judge or fitness.errors
        rows = self.start(rng, walks, fitness.heads, groups)
        scores = scored(rows)
        found = [Partition(row, float(score)) for row, score in zip(rows, scores)]
        for step in range(min(steps, genetic.generations) if groups > 1 else 0):
            tried = rows.copy()
            for row in tried:
                take_step(row, int(rng.integers(fitness.heads)), near, rng, self.equal_groups)
            anew = rng.random(walks) < self.restart
            if anew.any():
                tried[anew] = self.start(rng, int(anew.sum()), fitness.heads, groups)
            tried_scores = scored(tried)
            found += [Partition(row, float(score)) for row, score in zip(tried, tried_scores)]
            keep = (tried_scores < scores) | anew | (rng.random(walks) < self.accept_worse)
            rows[keep], scores[keep] = tried[keep], tried_scores[keep]
            report(step + 1, steps, f"step {step + 1} towards {groups} KV heads, best {scores.min():.6g}")
        best = best_per_count(found)[groups].labels
        return Partition(best, float(fitness.errors(best[None])[0]))

    def start(self, rng: np.random.Generator, n: int, heads: int, groups: int) -> np.ndarray:
        """Random groupings [n, heads] to start from."""
        if self.equal_groups:
            return canonical_labels(rng.permuted(np.tile(np.arange(heads) // (heads // groups), (n, 1)), axis=1))
        return random_labels(rng, n, heads, np.full(n, groups))


def nearest_heads(distance: np.ndarray, count: int) -> np.ndarray:
    """Indices [G, count] of each head's nearest other heads, nearest first. distance: [G, G]."""
    others = distance + np.where(np.eye(len(distance), dtype=bool), np.inf, 0)
    return np.argsort(others, axis=1, kind="stable")[:, : min(count, len(distance) - 1)]


def take_step(row: np.ndarray, head: int, near: np.ndarray, rng: np.random.Generator, equal_groups: bool) -> None:
    """Bring `head` into the group of one of its nearest heads, in place: by a swap with another member of that group,
    or by a move."""
    options = [other for other in near[head].tolist() if row[other] != row[head]]
    if not options:
        return
    partner = options[int(rng.integers(len(options)))]
    if not equal_groups:
        if (row == row[head]).sum() > 1:  # the last head of a group stays, so that the number of groups stays
            row[head] = row[partner]
        return
    others = [h for h in np.flatnonzero(row == row[partner]).tolist() if h != partner]
    if others:
        traded = others[int(rng.integers(len(others)))]
        row[head], row[traded] = row[traded], row[head]
