"""Picture of a run: KV cache against loss, and below it KV heads per layer of the best layouts.

If nats were measured, the axis is the logarithm of the loss over the original, so that one bad baseline does not
squeeze the front into a line.
"""

from itertools import cycle
from pathlib import Path
from typing import Any, Literal, Protocol

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from grouper.names import printable
from grouper.outputs import bears, write_file
from search.methods.registry import ORIGINAL, baselines, not_found
from search.runs.columns import TRADED

COLOURS = ["#1b6ca8", "#d1495b", "#2a9d5c", "#8e5ea2", "#e08e0b", "#444444"]
GREY = "#9a9a9a"
MARKERS = {"stock": "s", "padded": "^", "ragged": "o", "none": "x"}  # by export class
MADE_BY = "Grouper, with Matplotlib"
LEAST = 1e-4  # nats over the original; smaller losses are drawn as this
SHARES = {0.5: "half", 0.25: "quarter"}


class Front(Protocol):
    """Parts of a run's ParetoFront that a picture shows. (ParetoFront imports pictures for notebooks, so this file
    cannot import it.)"""

    table: pd.DataFrame

    @property
    def size(self) -> str: ...

    @property
    def over(self) -> pd.Series: ...

    @property
    def judge(self) -> str: ...


def draw(front: Front, path: Path, title: str) -> None:
    """Write the picture as SVG; equal tables give equal bytes."""
    with plt.rc_context({"svg.hashsalt": "grouper", "font.family": "DejaVu Sans", "font.size": 10}):
        figure = front_picture(front, title)
        write_file(path, lambda beside: figure.savefig(beside, format="svg", metadata={"Date": None}))
        plt.close(figure)


def save(figure: Figure, path: Path, dpi: float | Literal["figure"] = "figure") -> None:
    """Write a picture in the format of its file name, marked as Grouper's; equal pictures give equal bytes."""
    kind = path.suffix[1:]
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    metadata = {"Software" if kind == "png" else "Creator": MADE_BY, **undated}
    write_file(path, lambda beside: figure.savefig(beside, format=kind, dpi=dpi, metadata=metadata))


def is_picture(path: Path) -> bool:
    """Whether `save` wrote the file."""
    return bears(path, MADE_BY.encode())


def legend(axes: Axes, *given: Any, **how: Any) -> None:
    """Add a legend that shows names literally: no mathematics, no control characters."""
    for text in axes.legend(*given, frameon=False, **how).get_texts():
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))


def ink() -> str:
    """Current colour of text in pictures; it depends on the background."""
    return plt.rcParams["text.color"]


def front_picture(front: Front, title: str) -> Figure:
    """Figure of the front, with heads per layer below it."""
    table, what, logarithmic = values(front)
    figure, (axes, heads) = plt.subplots(
        2, 1, figsize=(7.2, 5.8), layout="constrained", gridspec_kw={"height_ratios": [3.4, 1]}
    )
    draw_front(axes, table)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel=TRADED[front.size], ylabel=what, xlim=(0, 1.04))
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_title(printable(title), parse_math=False)
    draw_heads(heads, table)
    for one in (axes, heads):
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
        legend(one, fontsize=8)
    return figure


def values(front: Front) -> tuple[pd.DataFrame, str, bool]:
    """(rows to draw, with the columns `value` and, for the size, `kv_ratio`; name of the value; whether the axis is
    logarithmic)."""
    table, over = front.table.assign(kv_ratio=front.table[front.size]), front.over
    if table["nll"].notna().any():
        if over.notna().any():
            least = max(LEAST, 0.5 * over[over > 0].min()) if (over > 0).any() else LEAST
            over = over.clip(lower=least)  # the original is drawn at the bottom
            return table.assign(value=over).dropna(subset="value"), "nats per token over the original", True
        return table.assign(value=table["nll"]).dropna(subset="value"), "nats per token", False
    if front.judge in ("cosine", "kl"):  # the model has no loss
        value = 1 - table["cosine"] if front.judge == "cosine" else table["kl"]
        what = "1 - cosine with the original's vectors" if front.judge == "cosine" else "KL to the original"
        return table.assign(value=value.clip(lower=LEAST)).dropna(subset="value"), what, True
    return table.assign(value=table["error"]), "error of the merge (fitness)", False


def draw_front(axes: Axes, table: pd.DataFrame) -> None:
    """Draw a line for each method and merge and a marker for each export class, and name half and quarter of the cache
    and the knee."""
    found = table[~table["method"].isin(not_found())]
    series = sorted({(m, r) for m, r in zip(found["method"], found["merge"])}, key=lambda s: (s[1], s[0]))
    several_merges = table["merge"].nunique() > 1
    for (method, merge), colour in zip(series, COLOURS * len(series)):
        rows = found[(found["method"] == method) & (found["merge"] == merge)]
        best = rows[rows["value"] == rows.groupby("kv_ratio")["value"].transform("min")].sort_values("kv_ratio")
        label = f"{method}, {merge}" if several_merges else method
        axes.plot(best["kv_ratio"], best["value"], "-", lw=1.2, color=colour, label=label, zorder=3)
        for kind, marker in MARKERS.items():
            some = best[best["deploy"] == kind]
            axes.plot(some["kv_ratio"], some["value"], marker, ms=4, color=colour, zorder=3)
    for method, marker in zip(baselines(), cycle("Dv<>")):
        rows = table[table["method"] == method]
        for merge in sorted(rows["merge"].unique()):
            some = rows[rows["merge"] == merge].sort_values("kv_ratio")
            label = f"{method}, {merge}" if several_merges else f"{method} heads"
            axes.plot(some["kv_ratio"], some["value"], marker, ls=":", lw=1, ms=4, color=GREY, label=label, zorder=2)
    original = table[table["method"] == ORIGINAL]
    axes.plot(original["kv_ratio"], original["value"], "*", ms=13, color=ink(), label="original", zorder=4)
    for kind in [k for k in MARKERS if (found["deploy"] == k).any()]:
        axes.plot([], [], MARKERS[kind], color=ink(), ms=4, label=kind if kind != "none" else "not exported")
    best = found.loc[found.groupby("kv_ratio")["value"].idxmin()].sort_values("kv_ratio")
    marked = {name: best[(best["kv_ratio"] - share).abs() < 0.005] for share, name in SHARES.items()}
    at = knee(best["kv_ratio"].to_numpy(), best["value"].to_numpy())
    named = {int(rows.index[0]) for rows in marked.values() if len(rows)}
    marked["knee"] = best.iloc[[at]] if at is not None and best.index[at] not in named else best.iloc[:0]
    for name, rows in marked.items():
        for _, row in rows.head(1).iterrows():
            place, offset = (row["kv_ratio"], row["value"]), (-28, -22) if name == "knee" else (8, 14)
            axes.annotate(
                f"{name}: {row['value']:.3g}", place, offset, textcoords="offset points", fontsize=8,
                arrowprops={"arrowstyle": "-", "lw": 0.6, "color": ink()},
            )  # fmt: skip


def knee(ratios: np.ndarray, values: np.ndarray) -> int | None:
    """Index of the point farthest below the chord between the ends, with both axes scaled to 1; None if none is below
    it."""
    if len(ratios) < 3 or np.ptp(ratios) == 0 or np.ptp(values) == 0:
        return None
    x, y = ((v - v[0]) / (v[-1] - v[0]) if v[-1] != v[0] else v * 0 for v in (ratios, values))
    below = y - x if values[-1] < values[0] else x - y  # both scaled from 0 to 1
    return int(below.argmax()) if below.max() > 1e-9 else None


def draw_heads(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the KV heads of each layer, for the best layouts at half and at a quarter of the cache."""
    found = table[~table["method"].isin(not_found())]
    for (share, name), colour in zip(SHARES.items(), COLOURS):
        rows = found[(found["kv_ratio"] - share).abs() < 0.005].sort_values(["value", "layout"])
        if len(rows):
            counts = [sum(map(float, c.split("/"))) / len(c.split("/")) for c in rows.iloc[0]["kv_heads"].split(";")]
            edges = np.arange(len(counts) + 1) - 0.5
            axes.stairs(counts, edges, color=colour, lw=1.4, label=f"{name}, layout {rows.iloc[0]['layout']}")
    axes.set(xlabel="layer", ylabel="KV heads", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axes.patches:
        axes.plot([], [], label="no layout at half or a quarter of the cache")
