"""Measure layouts of a run on text: nats per token, merging in memory."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fitness.perplexity import nll
from grouper.calibration.text import TextSource, digest, load_tokenizer, windows
from grouper.errors import GrouperError
from grouper.merging import merge_named
from grouper.model.checkpoint import Checkpoint
from grouper.model.in_memory import InMemoryModel
from grouper.outputs import write_text
from grouper.regroup import Calibration, Regrouper
from search.methods.registry import BASELINES, ORIGINAL
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
    keep_calibration: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ParetoFront:
    """Fill nll and perplexity of a run's layouts, the original's and the baselines' among them, and write pareto.csv after each.

    overwrite forgets all earlier measurements. Merges that need calibration, and refinement, use the run's own calibration text,
    never the one that is measured on.
    layouts: "spread" (the baselines, the best stock layouts and 12 along the front), "all", or numbers with commas. merge: the run's
    own unless given; another one adds rows; layouts that only averaging makes sense of keep the mean. What is measured already is not
    measured again. Raises GrouperError where the run was measured on other text, or refined otherwise.
    """
    folder = RunFolder.open(Path(run))
    front = folder.front()
    settings = folder.settings
    checkpoint = Checkpoint.open(settings["model"], settings["revision"]).local()
    if checkpoint.fingerprint != settings["fingerprint"]:
        raise GrouperError(
            f"{settings['model']} is not the model that {run} searched (its files changed): search again"
        )
    merge = merge or front.own_merge
    merge_named(merge)
    calibration = calibration_of(settings, refine_tokens, keep_calibration)
    if refine and calibration is None:
        raise GrouperError(
            f"{run} was searched without text, so there is nothing to refine on: search with --text or --dataset"
        )
    tokens = windows(source, load_tokenizer(checkpoint), window, limit)
    numbers = choose(front, layouts)
    regrouper = Regrouper(checkpoint, calibration, device)
    options = regrouper.refine_options(scope, settings["seed"]) if refine else None
    measuring = {"text": source.name, "digest": digest(tokens), "windows": list(tokens.shape), "dtype": dtype}
    _same_text(
        folder, front, measuring, options and {"scope": options.scope, "tokens": regrouper.refine_tokens}, overwrite
    )
    wanted = _add_rows(front, numbers, folder, merge, "+refine" if refine else "")
    todo = [i for i in wanted if np.isnan(front.table.loc[i, "nll"])]
    if todo:
        model = regrouper.model if dtype == "float32" else InMemoryModel(checkpoint, device, getattr(torch, dtype))
        regrouper = Regrouper(checkpoint, calibration, device, model)
    for done, index in enumerate(todo):
        row = front.table.loc[index]
        layout, by = folder.layout(int(row["layout"])), row["merge"].removesuffix("+refine")
        if row["method"] == ORIGINAL:
            model.restore()
        elif refine:
            regrouper.install(layout, regrouper.refined(layout, by, options))
        else:
            regrouper.install(layout, regrouper.merged(layout, by))
        value = nll(model.model, tokens)
        front.table.loc[index, ["nll", "perplexity"]] = value, math.exp(min(value, 700))
        front.mark()
        front.write(folder.path / "pareto.csv")
        if progress:
            progress(done + 1, len(todo), f"layout {row['layout']}, {row['method']}, {row['kv_ratio']:.0%}", value)
    draw(front, folder.path / "pareto.svg", f"{checkpoint.title}: KV cache against what it costs")
    return front


def calibration_of(
    settings: dict, refine_tokens: int | None = None, keep: str | Path | None = None
) -> Calibration | None:
    """The calibration that a run's settings name."""
    if not settings["text"] and not settings["dataset"]:
        return None
    source = TextSource(settings["text"], settings["dataset"])
    return Calibration(
        source, settings["tokens"], refine_tokens, settings["window"], None if keep is None else Path(keep)
    )


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
    picked = (
        along.iloc[np.unique(np.linspace(0, len(along) - 1, min(SPREAD, len(along))).round().astype(int))]
        if len(along)
        else along
    )
    return sorted({*baselines["layout"], *stock["layout"], *picked["layout"]})


def _add_rows(front: ParetoFront, numbers: list[int], folder: RunFolder, merge: str, refined: str) -> list[int]:
    """The rows of these layouts under this merge, made where there are none; the original is the same under all."""
    table = front.table
    rows, new = [], []
    for number in numbers:
        of_layout = table[table["layout"] == number]
        first = of_layout.iloc[0]
        label = f"{'mean' if folder.layout(number).only_mean else merge}{refined}"
        same = of_layout.index if first["method"] == ORIGINAL else of_layout.index[of_layout["merge"] == label]
        if len(same):
            rows.append(same[0])
        else:
            rows.append(len(table) + len(new))
            new.append({**first.to_dict(), "merge": label, "nll": np.nan, "perplexity": np.nan})
    if new:
        added = pd.DataFrame(new, index=range(len(table), len(table) + len(new))).astype(table.dtypes.to_dict())
        front.table = pd.concat([table, added])
    return sorted(rows)


def _same_text(folder: RunFolder, front: ParetoFront, text: dict, refinement: dict | None, overwrite: bool) -> None:
    """All of a run's measurements are on one text, and all refined ones refined alike, or the numbers could not be compared."""
    path = folder.path / "evaluation.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    refined_before = before.pop("refinement", None)
    measured = front.table["nll"].notna().any()
    if measured and before and not overwrite:
        if {**before, "text": ""} != {**text, "text": ""}:
            raise GrouperError(
                f"{folder.path} was measured on other text or windows: use the same, or --overwrite to measure anew"
            )
        if refinement and refined_before and refinement != refined_before:
            was = f"scope {refined_before['scope']}, {refined_before['tokens']:,} tokens"
            raise GrouperError(
                f"layouts of {folder.path} were refined otherwise ({was}): do the same, or --overwrite to measure anew"
            )
    if measured and overwrite:
        front.table[["nll", "perplexity"]] = np.nan
        front.mark()
        front.write(folder.path / "pareto.csv")
        refined_before = None
    refinement = refinement or refined_before
    write_text(path, json.dumps({**text, **({"refinement": refinement} if refinement else {})}, indent=2) + "\n")
