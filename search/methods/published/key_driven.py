"""Key-driven allocation (KDGQA and DGQA, arXiv 2408.08454): neighbouring KV heads are averaged, and query heads are
assigned in order. Each KV head gets a number of query heads in proportion to the norm of its keys on calibration text.

kdgqa norms min-max normalised, summed over the calibration windows. dgqa of each window's norms n and those of the
window before: 0.9 n + 0.1 before (moving average). dgqa-diff |n - before| (difference).

DGQA's values are averaged over windows, because the layout is fixed; the released code reallocates in every step and
divides its moving average by the window's length. As published, a KV head can get no query head, and equal norms divide
by zero. Here every KV head gets at least one, and equal norms give equal shares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from grouper.allocation import allocate
from grouper.calibration.input_moments import MeasuredInputs
from grouper.errors import GrouperError
from grouper.layout import Grouping, LayerLayout
from grouper.progress import Progress, no_progress
from search.methods.baselines import neighbour_groups
from search.methods.candidate import Candidate
from search.methods.method import Method
from search.methods.task import LayerTask
from search.options import GeneticOptions


def summed_above_least(norms: np.ndarray) -> np.ndarray:
    """Norms summed over windows, less the least sum: min-max normalisation without the scale, which does not affect
    shares."""
    total = norms.sum(0)
    return total - total.min()


def moving_average(norms: np.ndarray) -> np.ndarray:
    return (norms if len(norms) == 1 else 0.9 * norms[1:] + 0.1 * norms[:-1]).mean(0)


def difference(norms: np.ndarray) -> np.ndarray:
    return (norms if len(norms) == 1 else np.abs(norms[1:] - norms[:-1])).mean(0)


# Functions from norms [windows, groups] to [groups]; numbers of query heads are proportional to the result.
SHARES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum": summed_above_least, "moving-average": moving_average, "difference": difference,
}  # fmt: skip


@dataclass(frozen=True)
class KeyDriven(Method):
    """Entry of key-driven allocation. shares: name in SHARES of the function from norms to shares."""

    name: str = "kdgqa"
    shares: str = "sum"
    paper = "KDGQA, DGQA, arXiv 2408.08454"
    budgets = False
    needs_weights = True
    needs_text = True

    def __post_init__(self) -> None:
        if self.shares not in SHARES:
            raise GrouperError(f"shares by {self.shares!r}: expected one of {', '.join(SHARES)}")

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """One layout for every number of KV heads."""
        if not isinstance(task.inputs, MeasuredInputs) or task.inputs.keys is None:
            raise GrouperError(f"the {self.name} method goes by the norms of keys on text: give --text or --dataset")
        keys, found = task.inputs.keys.double().numpy(), []
        for count in range(1, task.attention.kv_heads):
            groups = neighbour_groups(task.attention.kv_heads, count)
            queries = allocate(SHARES[self.shares](key_norms(keys, groups)), task.attention.query_heads)
            readers = tuple(tuple(range(a, b)) for a, b in pairwise(np.cumsum([0, *queries])))
            layout = LayerLayout.shared(Grouping(readers, tuple(map(tuple, groups))))
            found.append(Candidate(layout, task.layout_error(layout)))
        return found


def key_norms(keys: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    """Norms [windows, groups] of each averaged K head over each window's tokens. keys: [windows, G, G] inner
    products."""
    return np.stack([np.sqrt(np.maximum(keys[:, g][:, :, g].sum((1, 2)), 0)) / len(g) for g in groups], axis=1)
