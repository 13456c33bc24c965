"""The picture of a front: KV cache against what it costs, the methods and the baselines in one frame."""

from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

from grouper.names import printable
from grouper.outputs import write_file
from search.methods.registry import ORIGINAL, baselines, not_found
from search.pareto import ParetoFront

COLOURS = ["#1b6ca8", "#d1495b", "#2a9d5c", "#8e5ea2", "#e08e0b", "#444444"]
GREY = "#9a9a9a"


def draw(front: ParetoFront, path: Path, title: str) -> None:
    """Draw the measured nats per token where there are any, else the error. SVG, the same bytes for the same table."""
    table = front.table
    measured = table["nll"].notna().any()
    column, what = ("nll", "nats per token") if measured else ("error", "error of the merge (fitness)")
    table = table[table[column].notna()]
    with plt.rc_context({"svg.hashsalt": "grouper", "font.family": "DejaVu Sans", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
        found = table[~table["method"].isin(not_found())]
        series = sorted({(m, r) for m, r in zip(found["method"], found["merge"])}, key=lambda s: (s[1], s[0]))
        several_merges = table["merge"].nunique() > 1
        for (method, merge), colour in zip(series, COLOURS * len(series)):
            rows = found[(found["method"] == method) & (found["merge"] == merge)].sort_values(["kv_ratio", column])
            best = rows[rows[column] == rows.groupby("kv_ratio")[column].transform("min")]
            label = f"{method}, {merge}" if several_merges else method
            axes.plot(best["kv_ratio"], best[column], "o-", ms=3.5, lw=1.4, color=colour, label=label, zorder=3)
        for method, marker in zip(baselines(), cycle("sx^v")):
            rows = table[table["method"] == method]
            for merge in sorted(rows["merge"].unique()):
                some = rows[rows["merge"] == merge].sort_values("kv_ratio")
                label = f"{method}, {merge}" if several_merges else f"{method} heads"
                axes.plot(some["kv_ratio"], some[column], marker, ls=":", lw=1, ms=5, color=GREY, label=label, zorder=2)
        original = table[table["method"] == ORIGINAL]
        axes.plot(original["kv_ratio"], original[column], "*", ms=13, color="black", label="original", zorder=4)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set(xlabel="KV cache, of the original's", ylabel=what, xlim=(0, 1.04))
        axes.set_title(printable(title), parse_math=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5)
        write_file(path, lambda beside: figure.savefig(beside, format="svg", metadata={"Date": None}))
        plt.close(figure)
