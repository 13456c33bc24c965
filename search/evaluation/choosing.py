"""Choice of the layouts of a run to measure, and their rows in pareto.csv."""

import numpy as np
import pandas as pd

from grouper.errors import GrouperError
from grouper.merging import Merge, merge_for
from search.methods.registry import ORIGINAL, not_found
from search.options import MEASURED
from search.runs.folder import RunFolder
from search.runs.pareto import ParetoFront

MOST_BASELINES = 12  # rows; of more, only those with equal groups are measured
SPREAD = 12  # layouts along the front that are measured by default


def choose(front: ParetoFront, layouts: str) -> list[int]:
    """Numbers of the layouts to measure, for "spread", "all" or "3,17,40". The original is always among them."""
    table = front.table.drop_duplicates("layout")
    original = table.loc[table["method"] == ORIGINAL, "layout"]
    if layouts == "all":
        return table["layout"].tolist()
    if layouts != MEASURED:
        try:
            numbers = [int(n) for n in layouts.split(",")]
        except ValueError as error:
            raise GrouperError(f"--layouts {layouts!r}: expected spread, all, or numbers like 3,17,40") from error
        unknown = sorted(set(numbers) - set(table["layout"]))
        if unknown:
            raise GrouperError(f"the run has no layout {unknown[0]}: the numbers are in the first column of pareto.csv")
        return sorted({*original, *numbers})
    baselines = table[table["method"].isin(not_found())]
    found = table.drop(baselines.index)
    if len(baselines) > MOST_BASELINES:
        stock = baselines["deploy"] == "stock"
        equal = stock if stock.any() else baselines["method"].isin((ORIGINAL, "neighbour"))  # encoders have no stock
        baselines = baselines[equal]
    stock = found[found["deploy"] == "stock"].sort_values("error").drop_duplicates("kv_ratio")
    along = found[found["on_front"] == 1].sort_values(front.size)
    places = np.linspace(0, len(along) - 1, min(SPREAD, len(along))).round().astype(int)
    return sorted({*original, *baselines["layout"], *stock["layout"], *along.iloc[np.unique(places)]["layout"]})


def add_rows(front: ParetoFront, numbers: list[int], folder: RunFolder, merge: Merge, refined: str) -> list[int]:
    """Indices of these layouts' rows under this merge; missing rows are added. The original is the same under all
    merges."""
    table = front.table
    rows: list[int] = []
    new: list[dict] = []
    for number in numbers:
        of_layout = table[table["layout"] == number]
        first = of_layout.iloc[0]
        label = f"{merge_for(folder.layout(number), merge).name}{refined}"
        same = of_layout.index if first["method"] == ORIGINAL else of_layout.index[of_layout["merge"] == label]
        if len(same):
            rows.append(same[0])
        else:
            rows.append(len(table) + len(new))
            new.append({**first.to_dict(), "merge": label, **dict.fromkeys(front.measured_columns, np.nan)})
    if new:
        added = pd.DataFrame(new, index=range(len(table), len(table) + len(new))).astype(table.dtypes.to_dict())
        front.table = pd.concat([table, added])
    return sorted(rows)
