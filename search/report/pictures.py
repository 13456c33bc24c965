"""Pictures of a report, one file each, for papers."""

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from grouper.errors import GrouperError
from grouper.names import expected
from grouper.outputs import locked, refuse_foreign, refuse_inside, temporary_folder
from search.report.bounds import SERIES
from search.report.facts import Facts
from search.runs.picture import COLOURS, front_picture, is_picture, legend, save

FORMATS = ("png", "svg", "pdf")
STYLE: dict[Any, Any] = {"svg.hashsalt": "grouper", "font.family": "DejaVu Sans", "font.size": 9}
INK, BACK = "#e6edf3", "#0d1117"
DARK: dict[Any, Any] = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), BACK),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def parsed_formats(text: str) -> tuple[str, ...]:
    """Formats from comma-separated text: "png,svg" -> ("png", "svg"). Raises GrouperError for an unknown format."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise GrouperError(f"unknown picture format {name!r}: {expected(name, FORMATS)}")
    return names


def check_pictures(folder: Path, formats: tuple[str, ...], dark: bool, model: Path | None) -> None:
    """Raise GrouperError if pictures cannot be written to `folder`: it is a file, is or contains or lies in the model's
    folder, or holds another file under a picture's name."""
    if folder.exists() and not folder.is_dir():
        raise GrouperError(f"{folder} is a file: pictures go to a folder")
    refuse_inside(folder, model)
    for name in PICTURES:
        for kind in formats:
            refuse_foreign(folder / file_name(name, kind, dark), is_picture)


def file_name(picture: str, kind: str, dark: bool) -> str:
    return f"{picture}{'-dark' if dark else ''}.{kind}"


def write_pictures(facts: Facts, folder: Path, formats: tuple[str, ...], layout: int, dark: bool = False) -> list[Path]:
    """Write FOLDER/front.png and the others (front-dark.png if dark), those for which the run has data: all of them or
    none. layout: the layout shown in the pictures of heads and refinement."""
    with locked(folder / "pictures"), temporary_folder(folder, "pictures") as beside:
        drawn = []
        with plt.rc_context(STYLE | (DARK if dark else {})):
            for (name, draw), kind in product(PICTURES.items(), formats):
                figure = draw(facts, layout)  # a new figure for each format: saving one moves its elements
                if figure:
                    drawn.append(file_name(name, kind, dark))
                    save(figure, beside / drawn[-1], dpi=200)
                    plt.close(figure)
        for name in drawn:
            os.replace(beside / name, folder / name)
    return [folder / name for name in drawn]


def front(facts: Facts, layout: int) -> Figure:
    return front_picture(facts.front, f"{facts.title}: KV cache against what it costs")


def heads(facts: Facts, layout: int) -> Figure:
    """Picture of the heads, layer by query head, coloured by group."""
    found = facts.layout(layout)
    groups = np.stack([layer.k.group_of for layer in found.layers])
    figure, axes = plt.subplots(figsize=(6, 1.2 + 0.18 * len(groups)), layout="constrained")
    colours = ListedColormap([plt.get_cmap("tab20")(i % 20) for i in range(groups.max() + 1)])
    axes.imshow(groups, cmap=colours, aspect="auto", interpolation="nearest")
    axes.set(xlabel="query head", ylabel=facts.unit, title=f"layout {layout}: which query heads share a K head")
    return figure


def similarity(facts: Facts, layout: int) -> Figure | None:
    """Picture of the similarity of the middle layer's heads, as they are and aligned, in the order of the layout's
    groups."""
    if not facts.similarity:
        return None
    layer = len(facts.similarity) // 2
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained")
    for column, (kind, when) in enumerate([("k", "before"), ("k", "aligned"), ("v", "before"), ("v", "aligned")]):
        grouping = getattr(facts.layout(layout).layers[layer], kind)
        order = [source for sources in grouping.members for source in sources]
        shown = getattr(facts.similarity[layer][kind], when)[order][:, order]
        image = axes[column].imshow(shown, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axes[column].set_title(f"{kind.upper()}, {'as they are' if when == 'before' else 'aligned'}")
        axes[column].set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, shrink=0.8, label=f"cosine, {facts.unit} {layer}")
    return figure


def landscape(facts: Facts, layout: int) -> Figure | None:
    """Picture of each layer's error at each KV-head count: the total, and K's and V's parts if the run has them."""
    table = facts.landscape
    parts = {"K and V": table["error"]}
    if table["k_error"].notna().all() and len(table):
        parts |= {"K": table["k_error"], "V": table["error"] - table["k_error"]}
    shown = {name: table.assign(value=values)[values > 0] for name, values in parts.items()}
    if any(rows.empty for rows in shown.values()):
        return None
    figure, axes = plt.subplots(1, len(shown), figsize=(1 + 3.4 * len(shown), 3), layout="constrained", squeeze=False)
    for axis, (name, rows) in zip(axes[0], shown.items()):
        grid = rows.pivot(index="kv_heads", columns="layer", values="value").astype(float)
        image = axis.pcolormesh(grid.columns, range(len(grid)), grid.to_numpy(), norm=LogNorm(), cmap="viridis")
        axis.set(title=name, xlabel=facts.unit, ylabel="KV heads")
        axis.set_yticks(range(len(grid)), grid.index)
        figure.colorbar(image, ax=axis)
    return figure


def progress(facts: Facts, layout: int) -> Figure | None:
    """Picture of the search: least error of all layers against groupings scored."""
    methods = sorted({m for table in facts.progress for m in table["method"]})
    if not methods:
        return None
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for method, colour in zip(methods, COLOURS * len(methods)):
        for table in facts.progress:
            rows = table[table["method"] == method]
            label = method if table is facts.progress[0] else None
            axes.plot(rows["scored"], rows["error"] / rows["error"].iloc[:1].sum(), color=colour, lw=0.8, label=label)
    axes.set(
        xlabel=f"groupings scored, {facts.unit} by {facts.unit}", ylabel="best error, relative to the first generation"
    )
    return tidy(figure, axes)


def refinement(facts: Facts, layout: int) -> Figure | None:
    rows = facts.refined[facts.refined["layout"] == layout]
    if rows.empty:
        return None
    rows = rows[rows["merge"] == rows["merge"].iloc[-1]]
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for offset, (column, label) in enumerate({"before": "merged", "after": "refined"}.items()):
        axes.bar(rows["layer"] + 0.4 * offset - 0.2, rows[column], 0.4, label=label, color=COLOURS[offset])
    axes.set(xlabel=facts.unit, ylabel=f"error of the {facts.unit}'s output")
    return tidy(figure, axes)


def bounds(facts: Facts, layout: int) -> Figure | None:
    """Picture of each layer's errors of K and V beside the least that the same bytes allow."""
    rows = facts.bounds[facts.bounds["layout"] == layout]
    if rows.empty:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, (part, shown) in zip(axes, SERIES.items()):
        for at, (column, label) in enumerate(shown.items()):
            place = rows["layer"] + 0.8 * (at - (len(shown) - 1) / 2) / len(shown)
            axis.bar(place, rows[column], 0.8 / len(shown), label=label, color=COLOURS[at])
        axis.set(title=part, xlabel=facts.unit, ylabel="error, of the energy")
        tidy(figure, axis)
    return figure


def tidy(figure: Figure, axes: Axes) -> Figure:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend(axes, fontsize=8)
    return figure


PICTURES: dict[str, Callable[[Facts, int], Figure | None]] = {
    "front": front, "heads": heads, "similarity": similarity, "landscape": landscape, "progress": progress,
    "refinement": refinement, "bounds": bounds,
}  # fmt: skip
