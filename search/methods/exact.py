"""Optimal partitions into every number of groups, by dynamic programming over subsets; up to 16 heads.

best[S, k] = min over groups g in S that hold S's smallest head of cost(g) + best[S - g, k - 1]. Each partition is met
once, in 3^(G-1) steps, vectorised over the remainders S - g.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fitness import LayerFitness
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.progress import Progress, no_progress
from search.methods.candidate import Candidate
from search.methods.method import Method
from search.methods.task import LayerTask
from search.optimise.partition import Partition
from search.options import GeneticOptions

LIMIT = 16  # heads; 14 million steps, a few seconds


@dataclass(frozen=True)
class Exact(Method):
    name: str = "exact"
    paper = "ours"

    @property
    def gives_equal_groups(self) -> bool:
        return True

    def check(self, architecture: Architecture) -> None:
        if architecture.kv_heads > LIMIT:
            has = f"this model has {architecture.kv_heads}"
            raise GrouperError(f"the exact method takes up to {LIMIT} KV heads, {has}: use qcqa-ac,qcqa-ec")

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """The optima with groups of any size and with equal groups, for every number of KV heads."""
        return task.candidates(optimal_partitions(task.tables) + optimal_partitions(task.tables, equal=True))


def subset_costs(fitness: LayerFitness) -> np.ndarray:
    """[2^G]: error of every subset of heads as one group; bit j stands for head j."""
    heads = fitness.heads
    member = (np.arange(1 << heads)[:, None] >> np.arange(heads)) & 1
    if hasattr(fitness, "membership_errors"):
        return fitness.membership_errors(member.astype(np.float64))
    groups = [tuple(np.flatnonzero(row).tolist()) for row in member[1:]]
    return np.concatenate([[0.0], fitness.group_errors(groups)])


def _subsets(bits: list[int]) -> np.ndarray:
    """Masks of every subset of the given bit positions."""
    masks = np.zeros(1, np.int64)
    for bit in bits:
        masks = np.concatenate([masks, masks | (1 << bit)])
    return masks


def optimal_partitions(fitness: LayerFitness, equal: bool = False) -> list[Partition]:
    """The best partition for each number of groups from 1 to G - 1; with `equal`, only into groups of one size.

    Meant for up to 16 heads: time and memory triple with each further head.
    """
    heads = fitness.heads
    cost = subset_costs(fitness)
    sizes = ((np.arange(1 << heads)[:, None] >> np.arange(heads)) & 1).sum(-1)
    if not equal:
        return _solve(heads, cost, range(1, heads))
    found = []
    for kv_heads in range(1, heads):
        if heads % kv_heads == 0:
            allowed = np.where(sizes == heads // kv_heads, cost, np.inf)
            found += _solve(heads, allowed, [kv_heads])
    return found


def _solve(heads: int, cost: np.ndarray, counts: Iterable[int]) -> list[Partition]:
    counts = list(counts)
    most = max(counts)
    best = np.full((1 << heads, most + 1), np.inf)
    best[0, 0] = 0
    for low in range(
        heads - 1, -1, -1
    ):  # masks whose smallest head is `low`; their remainders have larger ones and are done
        above = list(range(low + 1, heads))
        groups = (1 << low) | _subsets(above)
        for group in groups[np.isfinite(cost[groups])].tolist():
            rests = _subsets([bit for bit in above if not group >> bit & 1])
            reached = best[rests, :-1]
            reached += cost[group]
            target = rests | group
            best[target, 1:] = np.minimum(best[target, 1:], reached)
    return [Partition(_trace(heads, cost, best, k), float(best[-1, k])) for k in counts if np.isfinite(best[-1, k])]


def _trace(heads: int, cost: np.ndarray, best: np.ndarray, kv_heads: int) -> np.ndarray:
    """Labels of the partition that attains best[all, kv_heads]."""
    labels = np.zeros(heads, np.int16)
    rest = (1 << heads) - 1
    for k in range(kv_heads, 0, -1):
        bits = [b for b in range(heads) if rest >> b & 1]
        groups = (1 << bits[0]) | _subsets(bits[1:])
        group = int(groups[np.argmin(cost[groups] + best[rest ^ groups, k - 1])])
        labels[[b for b in range(heads) if group >> b & 1]] = kv_heads - k
        rest ^= group
    return labels
