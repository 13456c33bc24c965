"""`grouper compare`: comparison of several runs by their losses for the cache they keep."""

from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd

from grouper.errors import GrouperError
from grouper.outputs import locked, refuse_foreign, refuse_inside
from search.methods.registry import baselines
from search.runs.folder import RunFolder
from search.runs.record import compared_by

RATIOS = (0.5, 0.25, 0.125)
LOSSES = (0.02, 0.05, 0.2)  # nats over the original, at which the saved cache is reported
COLOURS = ("#1b6ca8", "#d1495b", "#2a9d5c", "#8e5ea2", "#e08e0b", "#444444")


@dataclass(frozen=True)
class Compared:
    """One compared run. column: the value compared, "over" (nats over the original) or "error"; lower is better.
    hypervolume: share of the area up to the whole cache and the largest value of all runs that the front dominates;
    higher is better. at: least value at each KV ratio, None where there is none. saved: share of the cache saved within
    each loss."""

    run: str
    model: str
    methods: str
    column: str
    layouts: int
    hypervolume: float
    at: dict[str, float | None]
    saved: dict[str, float | None]


def compare(runs: list[str | Path]) -> tuple[list[Compared], dict[str, pd.DataFrame]]:
    """Comparison of each run, and the points (kv_ratio, value) of its front. Values are nats over the original if all
    runs were measured on the same text, else errors if model and fitness are the same. Baselines do not count. Raises
    GrouperError if neither can be compared."""
    if len(runs) < 2 or len({str(Path(r).resolve()) for r in runs}) < len(runs):
        raise GrouperError("give at least two runs, each once")
    folders = {str(run): RunFolder.open(Path(run)) for run in runs}
    column = compared_by(list(folders.values()))[0]
    points = {name: _points(folder, column) for name, folder in folders.items()}
    largest = max(float(p["value"].max()) for p in points.values())
    return [_compared(name, folders[name], points[name], column, largest) for name in folders], points


def _points(folder: RunFolder, column: str) -> pd.DataFrame:
    front = folder.front()
    table = front.table
    value = front.over if column == "over" else table["error"]
    points = table[["kv_ratio", "layout"]].assign(value=value)[~table["method"].isin(baselines())]
    return points.dropna(subset="value").sort_values(["kv_ratio", "value"]).reset_index(drop=True)


def _compared(name: str, folder: RunFolder, points: pd.DataFrame, column: str, largest: float) -> Compared:
    import moocore

    settings = folder.settings
    clipped = points[["kv_ratio", "value"]].to_numpy(float)
    area = float(moocore.hypervolume(np.maximum(clipped, 0), ref=(1.0, largest))) / largest if largest > 0 else 0.0
    at = {}
    for ratio in RATIOS:
        near = points[(points["kv_ratio"] - ratio).abs() <= 0.005]
        at[f"{ratio:.1%}"] = float(near["value"].min()) if len(near) else None
    saved = {}
    for loss in LOSSES if column == "over" else ():
        within = points[points["value"] <= loss]
        saved[f"+{loss:g}"] = float(1 - within["kv_ratio"].min()) if len(within) else None
    methods = ",".join(settings.options.method)
    return Compared(name, Path(settings.model).name, methods, column, len(points), area, at, saved)


def to_data(compared: list[Compared]) -> list[dict]:
    return [asdict(one) for one in compared]


def check_picture(path: Path, runs: list[str | Path]) -> None:
    """Raise GrouperError if the picture cannot be written: unknown format, another file stands there, or the folder
    belongs to a run's model."""
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise GrouperError(f"{path}: expected a picture that ends in .svg, .png or .pdf")
    from search.runs.picture import is_picture

    refuse_inside(path, *(RunFolder.open(Path(run)).settings.model_folder for run in runs))
    refuse_foreign(path, is_picture)


def draw(compared: list[Compared], points: dict[str, pd.DataFrame], path: Path) -> None:
    """Draw the best value of each run at each KV ratio; the axis is logarithmic if all losses are positive."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    from search.runs.picture import legend, save

    with locked(path), plt.rc_context({"svg.hashsalt": "grouper", "font.family": "DejaVu Sans", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
        lines = []
        for one, colour in zip(compared, cycle(COLOURS)):
            rows = points[one.run].groupby("kv_ratio")["value"].min()
            rows = rows[rows > 0] if one.column == "over" else rows
            lines += axes.plot(rows.index, rows.to_numpy(), "o-", ms=3.5, lw=1.4, color=colour)
        over = compared[0].column == "over"
        logarithmic = over and any((p["value"] > 0).any() for p in points.values())
        axes.set(xlabel="KV cache, of the original's", xlim=(0, 1.04), yscale="log" if logarithmic else "linear")
        axes.set_ylabel("nats per token over the original" if over else "error of the merge (fitness)")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        legend(axes, lines, [one.run for one in compared], fontsize=8.5)
        save(figure, path)
        plt.close(figure)
