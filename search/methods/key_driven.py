"""Key-driven allocation (KDGQA and DGQA, arXiv 2408.08454): neighbouring KV heads are averaged, and query heads dealt out in order, a KV head
getting a number in proportion to the norm of its keys on calibration text.

KDGQA  norms min-max normalised, summed over the calibration windows.
DGQA   of each window's norms n and those of the window before: 0.9 n + 0.1 before (moving average), or |n - before| (difference); averaged over
       windows, for the layout is fixed. The released code allocates anew in every step and divides its memory by the window's length.

As published, a head can get no query, and equal norms divide by zero; here every head gets at least one, and equal norms equal shares.
"""

from itertools import pairwise

import numpy as np

from grouper.layout import Grouping, LayerLayout
from search.methods.baselines import neighbour_groups
from search.methods.candidate import Candidate
from search.methods.task import LayerTask
from search.optimise.nsga2 import Report, Settings


def kdgqa(
    task: LayerTask, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """One layout for every number of KV heads."""

    def shares(norms: np.ndarray) -> np.ndarray:
        n = norms.sum(0)
        return n - n.min()

    return _layouts(task, shares)


def dgqa(
    task: LayerTask, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """The moving-average form."""
    return _layouts(task, lambda n: (n if len(n) == 1 else 0.9 * n[1:] + 0.1 * n[:-1]).mean(0))


def dgqa_diff(
    task: LayerTask, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """The difference form."""
    return _layouts(task, lambda n: (n if len(n) == 1 else np.abs(n[1:] - n[:-1])).mean(0))


def _layouts(task: LayerTask, shares) -> list[Candidate]:
    """shares: norms [windows, groups] -> [groups], to which the numbers of queries are to be proportional."""
    heads, found = task.attention.kv_heads, []
    for count in range(1, heads):
        groups = neighbour_groups(heads, count)
        sizes = allocate(shares(key_norms(task.inputs.keys.double().numpy(), groups)), task.query_heads)
        ends = np.cumsum([0, *sizes])
        readers = tuple(tuple(range(a, b)) for a, b in pairwise(ends))
        layout = LayerLayout.shared(Grouping(readers, tuple(map(tuple, groups))))
        labels = np.repeat(np.arange(count), [len(g) for g in groups])
        found.append(Candidate(labels, task.layout_error(layout), layout))
    return found


def key_norms(keys: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    """keys: [windows, G, G] inner products. Returns [windows, groups]: the norm of each averaged K head over each window's tokens."""
    return np.stack([np.sqrt(np.maximum(keys[:, g][:, :, g].sum((1, 2)), 0)) / len(g) for g in groups], axis=1)


def allocate(shares: np.ndarray, queries: int) -> list[int]:
    """Whole numbers of queries in proportion to `shares`, at least one each, `queries` together: rounded, then one off the largest or on
    the smallest until the sum is right."""
    total = shares.sum()
    even = np.full(len(shares), 1 / len(shares))
    sizes = np.maximum(
        np.round(queries * (shares / total if total > 0 and np.isfinite(total) else even)).astype(int), 1
    )
    while sizes.sum() > queries:
        sizes[sizes.argmax()] -= 1
    while sizes.sum() < queries:
        sizes[sizes.argmin()] += 1
    return sizes.tolist()
