"""Quality of the cheap fitnesses: how well they rank layouts of one size, compared with measured losses.

Any proxy ranks well across sizes, so only layouts of one KV ratio are compared, refined ones apart from the others.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fitness import FITNESSES, Fitness, LayerFitness
from grouper.attention import Attention
from grouper.compress import Regrouper
from grouper.layout import HeadLayout, LayerLayout
from grouper.registry import Registry
from grouper.schema import Row, damage_said, read_rows
from search.methods.registry import ORIGINAL
from search.runs.folder import RunFolder
from search.runs.pareto import ParetoFront

FILE = "proxies.csv"
COLUMNS = ["fitness", "merge", "kv_ratio", "layouts", "spearman", "kendall"]
LEAST = 5  # layouts of one KV ratio and merge; a rank correlation of fewer means nothing


def judge_proxies(
    folder: RunFolder, front: ParetoFront, regrouper: Regrouper, assignments: tuple[str, ...]
) -> pd.DataFrame:
    """Spearman's and Kendall's rank correlation of each fitness with measured nats per token. One row per fitness,
    merge and KV ratio (for a grouped encoder: ratio of weights) with at least 5 measured layouts; columns: fitness,
    merge, kv_ratio, layouts, spearman, kendall."""
    table = front.table[front.table["nll"].notna() & (front.table["method"] != ORIGINAL)]
    table = table.assign(kv_ratio=table[front.size].round(6)).drop_duplicates(["layout", "merge"])
    groups = {key: rows for key, rows in table.groupby(["kv_ratio", "merge"]) if len(rows) >= LEAST}
    numbers = sorted({int(n) for rows in groups.values() for n in rows["layout"]})
    layouts = {number: folder.layout(number) for number in numbers}
    errors = fitness_errors(layouts, regrouper, FITNESSES.configured(assignments)) if layouts else {}
    found = []
    for (ratio, merge), rows in sorted(groups.items(), key=lambda group: (-group[0][0], group[0][1])):
        for name, of_layout in errors.items():
            proxy = [of_layout[int(n)] for n in rows["layout"]]
            found.append((name, merge, ratio, len(rows), *_correlations(proxy, rows["nll"])))
    return pd.DataFrame(found, columns=COLUMNS)


def write_proxies(folder: RunFolder, found: pd.DataFrame) -> None:
    """Write RUN/proxies.csv, or remove it if nothing could be compared."""
    path = folder.path / FILE
    if len(found):
        folder.digests.write(path, found.to_csv(index=False, lineterminator="\n"))
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _ProxyRow(Row):
    """A row of proxies.csv. Both correlations are missing if all errors, or all measured nats, are equal."""

    fitness: str
    merge: str
    kv_ratio: float
    layouts: int
    spearman: float | None = None
    kendall: float | None = None


def read_proxies(run: str | Path) -> pd.DataFrame | None:
    """The table that `judge_proxies` made; None if there is none. Raises GrouperError for a damaged one."""
    path = Path(run) / FILE
    if not path.is_file():
        return None
    with damage_said(path, "delete it and evaluate the run again"):
        table = pd.DataFrame([vars(row) for row in read_rows(path, _ProxyRow)], columns=COLUMNS)
        RunFolder(Path(run)).digests.check(path.stem, path)
    return table.astype({"spearman": float, "kendall": float})


def fitness_errors(
    layouts: dict[int, HeadLayout], regrouper: Regrouper, fitnesses: Registry[Fitness]
) -> dict[str, dict[int, float]]:
    """Errors by fitness and layout, summed over layers. Tables are made once for each layer."""
    a = regrouper.architecture
    sums = {name: dict.fromkeys(layouts, 0.0) for name in fitnesses}
    for layer in range(a.layers):
        attention = a.read(regrouper.checkpoint, layer)
        for name, fitness in fitnesses.items():
            scored = _LayerErrors(fitness, attention, regrouper, layer)
            for number, layout in layouts.items():
                sums[name][number] += scored(layout.layers[layer])
    return sums


class _LayerErrors:
    """Errors of one layer under any layout; tables are made on first use."""

    def __init__(self, fitness: Fitness, attention: Attention, regrouper: Regrouper, layer: int):
        self.fitness, self.attention, self.device = fitness, attention, regrouper.device
        self.inputs = regrouper.moments_of(layer) if fitness.needs_moments else None
        self.tables: dict[str, LayerFitness] = {}
        self.known: dict[LayerLayout, float] = {}

    def __call__(self, layout: LayerLayout) -> float:
        if layout not in self.known:
            self.known[layout] = self._error(layout)
        return self.known[layout]

    def _error(self, layout: LayerLayout) -> float:
        if not layout.keeps_readers(self.attention.queries_per_kv_head):
            return self.fitness.error_of_any_layout(self.attention, layout, self.inputs)
        if layout.is_shared:
            return self._of("kv", layout.k.labels)
        return self._of("k", layout.k.labels) + self._of("v", layout.v.labels)

    def _of(self, part: str, labels: np.ndarray) -> float:
        if part not in self.tables:
            self.tables[part] = self.fitness.tables(self.attention, self.inputs, part=part, device=self.device)
        return float(self.tables[part].errors(labels[None])[0])


def _correlations(proxy: list[float], nll: pd.Series) -> tuple[float, float]:
    """Spearman's and Kendall's rank correlation; NaN if all values are equal."""
    from scipy.stats import kendalltau, spearmanr  # takes half a second, and few commands need it

    if len(set(proxy)) < 2 or nll.nunique() < 2:
        return float("nan"), float("nan")
    return float(spearmanr(proxy, nll).statistic), float(kendalltau(proxy, nll).statistic)
