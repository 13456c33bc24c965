"""Facts of a run for its report, as plain data."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fitness.similarity import Similarity, key_similarity, value_similarity
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export.formats import FORMATS
from grouper.families.architecture import Architecture
from grouper.kv_cache import USABLE, bytes_of
from grouper.layout import HeadLayout
from grouper.names import printable
from grouper.progress import Progress, no_progress
from search.methods.registry import ORIGINAL, baselines
from search.report.bounds import SERIES, read_bounds
from search.report.positions import losses_by_position
from search.runs.columns import SE, TRADED, error_of
from search.runs.folder import RunFolder
from search.runs.pareto import ParetoFront
from search.runs.picking import representative
from search.runs.record import compared_by, refining_options
from search.runs.samples import read_samples

DIGITS = 5  # digits of numbers in a report


@dataclass(frozen=True)
class Facts:
    """Facts of a run. landscape: least error at each count; columns layer, kv_heads, error, k_error. progress: of the
    genetic search; method, scored and error, a list per layer. refined: errors of refined layers; columns layout,
    merge, layer, before, after. similarity: of the K and V heads of every layer; empty if the model was not found, with
    the reason in `missing`. bounds: rows of bounds.csv. windows: number of tokens that each layer's cache holds, None
    if all hold the whole context. names: names of layers outside a decoder."""

    folder: RunFolder
    front: ParetoFront
    landscape: pd.DataFrame
    progress: list[pd.DataFrame]
    refined: pd.DataFrame
    bounds: pd.DataFrame
    similarity: list[dict[str, Similarity]] = field(default_factory=list)
    windows: list[int | None] | None = None
    context: int | None = None
    names: list[str] = field(default_factory=list)
    engines: dict[str, list[str]] = field(default_factory=dict)
    missing: str | None = None

    @property
    def title(self) -> str:
        """The model's name."""
        return printable(self.folder.settings.model.rstrip("/").rpartition("/")[2])

    @property
    def unit(self) -> str:
        """Word for the parts that errors and groups belong to: layers, or attentions in a model that may have two in a
        layer."""
        return "attention" if self.names else "layer"

    def layout(self, number: int) -> HeadLayout:
        return self.folder.layout(number)


def facts_of(
    folder: RunFolder, similar: bool = True, progress: Progress = no_progress, kv_cache: str | None = None
) -> Facts:
    """Facts of a run, read from its folder. similar: compare heads, which reads the model's weights. kv_cache: "any",
    or a KV cache type, whose rows are added with the type next to their merge. Raises GrouperError if there is no
    run."""
    front = folder.front()
    if kv_cache is not None:
        front = ParetoFront(front.kept.shown(front.table, kv_cache))
    first = folder.layout(int(front.table["layout"].iloc[0]))
    layers = range(len(first.layers))
    facts = {
        "landscape": landscape(folder, first), "progress": [folder.read_progress(layer) for layer in layers],
        "refined": folder.read_refined(), "bounds": read_bounds(folder),
        "windows": [0 if c == "none" else None for c in first.caches] or None,
    }  # fmt: skip
    try:
        checkpoint = folder.settings.open_checkpoint(local=False)
        a = Architecture.of(checkpoint.config)
        windows = [0 if cache == "none" else window for cache, window in zip(a.caches or a.windows, a.windows)]
        facts |= {
            "windows": windows,
            "context": a.context,
            "names": [] if a.family.reads == "windows" else [a.name_of(i) for i in layers],
        }
        facts["engines"] = {kind: FORMATS["hf"].engines(a, kind) for kind in ("stock", "padded", "ragged")}
        facts["similarity"] = similarities(checkpoint, a, progress) if similar else []
    except GrouperError as error:
        facts["missing"] = f"the model could not be read: {error}"
    return Facts(folder, front, **facts)


def landscape(folder: RunFolder, first: HeadLayout) -> pd.DataFrame:
    """Least error of each layer at each number of KV heads, over all methods that group K and V alike."""
    rows = []
    heads = first.query_heads, first.original_kv_heads
    for layer in range(len(first.layers)):
        best: dict[int, tuple[float, float | None]] = {}
        for candidates in (folder.read_layer(layer, *heads) or {}).values():
            for c in candidates:
                alike = c.layout.is_shared and c.layout.q is None
                if alike and c.error < best.get(c.kv_heads, (math.inf, None))[0]:
                    best[c.kv_heads] = (c.error, c.k_error)
        rows += [(layer, heads, *found) for heads, found in sorted(best.items())]
    return pd.DataFrame(rows, columns=["layer", "kv_heads", "error", "k_error"])


def similarities(checkpoint: Checkpoint, a: Architecture, progress: Progress) -> list[dict[str, Similarity]]:
    """Similarities of the heads of all layers, with moments of inputs guessed from the norms' weights."""
    found = []
    for layer in range(a.layers):
        attention, inputs = a.read(checkpoint, layer), a.input_moments(checkpoint, layer)
        found.append({"k": key_similarity(attention, inputs), "v": value_similarity(attention, inputs)})
        progress(layer + 1, a.layers, "comparing heads")
    return found


def titles_of(facts: Facts, beside: Facts | None) -> str:
    """Title of the page: the name of the model, or of both."""
    return " and ".join(dict.fromkeys(one.title for one in (facts, beside) if one))


def data_of(facts: Facts, beside: Facts | None = None) -> dict[str, Any]:
    """Data for the page's scripts, of one run or of two with distinct names. Raises GrouperError if two runs cannot be
    compared."""
    if beside is None:
        return to_data(facts)
    folders = [facts.folder, beside.folder]
    names = [Path(os.path.abspath(folder.path)).name for folder in folders]
    names = names if names[0] != names[1] else [str(folder.path) for folder in folders]
    comparable = common_to(folders)
    first, second = (to_data(one, printable(name)) for one, name in zip((facts, beside), names))
    return {**first, "comparable": comparable, "beside": second}


def common_to(folders: list[RunFolder]) -> list[str]:
    """Columns by which two runs can be compared on one page. Raises GrouperError if there are none."""
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise GrouperError(f"{folders[0].path} is the run itself: give another one to show beside it")
    if len({folder.front().size for folder in folders}) > 1:
        raise GrouperError("one of these runs grouped an encoder and one did not: their sizes cannot be compared")
    return compared_by(folders)


def to_data(facts: Facts, name: str = "") -> dict[str, Any]:
    """Data of one run for the page's scripts. Groups are strings with one character per query head (from "0" on),
    similarity maps have one byte per pair of heads. name: the run's, if there are two."""
    settings, first = facts.folder.settings, facts.layout(int(facts.front.table["layout"].iloc[0]))
    table = facts.front.table.assign(over=facts.front.over).reset_index(drop=True)
    numbers = table["layout"].unique().tolist()
    return {
        "name": name, "model": facts.title, "run": printable(os.path.abspath(facts.folder.path)),
        "command": printable(settings.command or ""),
        "fitness": settings.options.fitness, "text": printable(settings.options.text or settings.options.dataset or ""),
        "refining": [printable(word) for word in refining_options(facts.folder)], "merge": facts.front.own_merge,
        "missing": facts.missing and printable(facts.missing),
        "layers": len(first.layers), "queryHeads": first.query_heads, "kvHeads": first.original_kv_heads,
        "headDim": first.head_dim, "bytes": bytes_of(settings.options.kv_dtype), "kvDtype": settings.options.kv_dtype,
        "usable": USABLE, "windows": facts.windows, "context": facts.context or 4096, "engines": facts.engines,
        "size": facts.front.size, "traded": TRADED[facts.front.size], "unit": facts.unit,
        "names": [printable(name) for name in facts.names],
        "original": ORIGINAL, "baselines": list(baselines()), "first": int(representative(ParetoFront(table)).name),
        "errors": errors_of(list(table.columns)), "samples": read_samples(facts.folder.path),
        "columns": list(table.columns), "rows": [[plain(v) for v in row] for row in table.itertuples(index=False)],
        "layouts": {number: groups_of(facts.layout(number)) for number in numbers},
        "positions": [[plain_series(one) for one in row] for row in losses_by_position(facts.front)],
        "landscape": columns_of(facts.landscape),
        "progress": [columns_of(one) for one in facts.progress], "refined": columns_of(facts.refined),
        "bounds": columns_of(facts.bounds), "bounded": SERIES,
        "similarity": [{kind: maps_of(one) for kind, one in kinds.items()} for kinds in facts.similarity],
    }  # fmt: skip


def errors_of(columns: list[str]) -> dict[str, str]:
    """Columns of standard errors, by the column that each belongs to. The one for nats is of the difference from the
    original."""
    found = {column: error_of(column) for column in columns if not SE.search(column) and error_of(column) in columns}
    return {"over" if column == "nll" else column: error for column, error in found.items()}


def groups_of(layout: HeadLayout) -> dict[str, list[str] | None]:
    """Groups of K and, if they differ, of V: one string per layer."""
    k, v = ([letters(getattr(layer, kind).group_of) for layer in layout.layers] for kind in ("k", "v"))
    return {"k": k, "v": None if v == k else v}


def letters(groups: np.ndarray) -> str:
    return "".join(chr(ord("0") + int(g)) for g in groups)


def maps_of(similarity: Similarity) -> dict[str, list[int]]:
    """Similarity maps in percent."""
    both = {"before": similarity.before, "aligned": similarity.aligned}
    return {name: (100 * of).round().int().flatten().tolist() for name, of in both.items()}


def columns_of(table: pd.DataFrame) -> dict[str, list]:
    return {str(name): [plain(v) for v in table[name].tolist()] for name in table.columns}


def plain_series(series: dict[str, Any]) -> dict[str, Any]:
    return {name: [plain(v) for v in of] if isinstance(of, list) else plain(of) for name, of in series.items()}


def plain(value: Any) -> Any:
    """The value for JSON: few digits, null for missing ones."""
    if isinstance(value, str):
        return printable(value)
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    return float(f"{float(value):.{DIGITS}g}")
