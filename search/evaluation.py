"""Measure layouts of a run on text: nats per token, merging in memory."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fitness.perplexity import nll
from grouper.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.in_memory import InMemoryModel
from grouper.merging import merge_named
from grouper.outputs import write_text
from grouper.regroup import Calibration, Regrouper
from grouper.text import TextSource, digest, load_tokenizer, windows
from search.methods import BASELINES, ORIGINAL
from search.pareto import ParetoFront
from search.picture import draw
from search.run_folder import RunFolder

MOST_BASELINES = 12  # rows; where there are more, those with equal groups are measured
SPREAD = 12  # layouts along the front that are measured by default
WINDOW = 512  # tokens
Progress = Callable[[int, int, str, float], None]  # done, of so many, what, nats per token


def evaluate(
    run: str | Path,
    source: TextSource,
    *,
    merge: str | None = None,
    refine: bool = False,
    scope: str | None = None,
    refine_tokens: int | None = None,
    layouts: str = "spread",
    window: int = WINDOW,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ParetoFront:
    """Fill nll and perplexity of a run's layouts, the original's and the baselines' among them, and write pareto.csv after each.

    overwrite forgets all earlier measurements. Merges that need calibration, and refinement, use the run's own calibration text,
    never the one that is measured on.
    layouts: "spread" (the baselines, the best stock layouts and 12 along the front), "all", or numbers with commas. merge: the run's
    own unless given; another one adds rows. What is measured already is not measured again. Raises GrouperError where the run was
    measured on other text.
    """
    folder = RunFolder.open(Path(run))
    front = folder.front()
    settings = folder.settings
    checkpoint = Checkpoint.open(settings["model"], settings["revision"]).local()
    if checkpoint.fingerprint != settings["fingerprint"]:
        raise GrouperError(f"{settings['model']} is not the model that {run} searched (its files changed): search again")
    own = front.table["merge"].iloc[0]
    merge = merge or own
    merge_named(merge)
    calibration = calibration_of(settings, refine_tokens)
    if refine and calibration is None:
        raise GrouperError(f"{run} was searched without text, so there is nothing to refine on: search with --text or --dataset")
    label = f"{merge}+refine" if refine else merge
    tokens = windows(source, load_tokenizer(checkpoint), window, limit)
    numbers = choose(front, layouts)
    _same_text(folder, front, {"text": source.name, "digest": digest(tokens), "windows": list(tokens.shape), "dtype": dtype}, overwrite)
    _add_rows(front, numbers, label, own)
    todo = [i for i in front.table.index[front.table["layout"].isin(numbers)] if _wanted(front.table.loc[i], label)]
    if todo:
        model = InMemoryModel(checkpoint, device, getattr(torch, dtype))
        regrouper = Regrouper(checkpoint, calibration, device, model)
    for done, index in enumerate(todo):
        row = front.table.loc[index]
        layout = folder.layout(int(row["layout"]))
        if row["method"] == ORIGINAL:
            model.restore()
        elif refine:
            regrouper.install(layout, regrouper.refined(layout, merge, regrouper.refine_options(scope, settings["seed"])))
        else:
            regrouper.install(layout, regrouper.merged(layout, merge))
        value = nll(model.model, tokens)
        front.table.loc[index, ["nll", "perplexity"]] = value, math.exp(min(value, 700))
        front.mark()
        front.write(folder.path / "pareto.csv")
        if progress:
            progress(done + 1, len(todo), f"layout {row['layout']}, {row['method']}, {row['kv_ratio']:.0%}", value)
    draw(front, folder.path / "pareto.svg", f"{checkpoint.title}: KV cache against what it costs")
    return front


def calibration_of(settings: dict, refine_tokens: int | None = None) -> Calibration | None:
    """The calibration that a run's settings name."""
    if not settings["text"] and not settings["dataset"]:
        return None
    return Calibration(TextSource(settings["text"], settings["dataset"]), settings["tokens"], refine_tokens, settings["window"])


def _wanted(row: pd.Series, merge: str) -> bool:
    return (row["merge"] == merge or row["method"] == ORIGINAL) and np.isnan(row["nll"])


def choose(front: ParetoFront, layouts: str) -> list[int]:
    """Layout numbers for "spread", "all" or "3,17,40"."""
    table = front.table.drop_duplicates("layout")
    if layouts == "all":
        return table["layout"].tolist()
    if layouts != "spread":
        try:
            numbers = [int(n) for n in layouts.split(",")]
        except ValueError as error:
            raise GrouperError(f"--layouts {layouts!r}: expected spread, all, or numbers like 3,17,40") from error
        unknown = sorted(set(numbers) - set(table["layout"]))
        if unknown:
            raise GrouperError(f"the run has no layout {unknown[0]}: the numbers are in the first column of pareto.csv")
        return numbers
    baselines = table[table["method"].isin([ORIGINAL, *BASELINES])]
    if len(baselines) > MOST_BASELINES:
        baselines = baselines[baselines["deploy"] == "stock"]
    found = table[~table["method"].isin([ORIGINAL, *BASELINES])]
    stock = found[found["deploy"] == "stock"].sort_values("error").drop_duplicates("kv_bytes_per_token")
    along = found[found["on_front"] == 1].sort_values("kv_bytes_per_token")
    picked = along.iloc[np.unique(np.linspace(0, len(along) - 1, min(SPREAD, len(along))).round().astype(int))] if len(along) else along
    return sorted({*baselines["layout"], *stock["layout"], *picked["layout"]})


def _add_rows(front: ParetoFront, numbers: list[int], merge: str, own: str) -> None:
    """A row for each layout under another merge than the run's; the original is the same under all."""
    if merge == own:
        return
    table = front.table
    have = set(table.loc[table["merge"] == merge, "layout"])
    rows = table[(table["merge"] == own) & table["layout"].isin(set(numbers) - have) & (table["method"] != ORIGINAL)].copy()
    rows[["merge", "nll", "perplexity"]] = merge, np.nan, np.nan
    front.table = pd.concat([table, rows], ignore_index=True)


def _same_text(folder: RunFolder, front: ParetoFront, text: dict, overwrite: bool) -> None:
    """All of a run's measurements are on one text, or the numbers could not be compared."""
    path = folder.path / "evaluation.json"
    measured = front.table["nll"].notna().any()
    if measured and path.is_file() and {**json.loads(path.read_text()), "text": ""} != {**text, "text": ""} and not overwrite:
        raise GrouperError(f"{folder.path} was measured on other text or windows: use the same, or --overwrite to measure anew")
    if measured and overwrite:
        front.table[["nll", "perplexity"]] = np.nan
        front.mark()
        front.write(folder.path / "pareto.csv")
    write_text(path, json.dumps(text, indent=2) + "\n")
