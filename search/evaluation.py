"""Measure layouts of a run on text: nats per token, merging in memory."""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fitness.perplexity import nll, streamed_nll
from grouper.calibration.calibration import WINDOW
from grouper.calibration.source import TextSource
from grouper.calibration.text import digest, text_of
from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.merging import MERGES, Merge, merge_for
from grouper.model.in_memory import InMemoryModel
from grouper.outputs import temporary_folder, write_text
from grouper.parsing import json_object
from grouper.progress import Progress, untold
from grouper.ranks import locked_by_first, started_ranks
from grouper.refinement.layer import RefineOptions
from grouper.registry import check_assignments
from grouper.regroup import Regrouper
from search.methods.registry import ORIGINAL, not_found
from search.options import COMPUTING, MEASURED
from search.pareto import ParetoFront
from search.picture import draw
from search.run_folder import RunFolder

MOST_BASELINES = 12  # rows; where there are more, those with equal groups are measured
SPREAD = 12  # layouts along the front that are measured by default
REFINED = "+refine"  # how the column `merge` ends where a layout was refined


def evaluate(
    run: str | Path,
    source: TextSource,
    *,
    merge: str | None = None,
    refine: RefineOptions | None = None,
    layouts: str = MEASURED,
    window: int = WINDOW,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str = COMPUTING,
    memory: int | None = None,
    keep_calibration: str | Path | None = None,
    set: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: Progress = untold,
) -> ParetoFront:
    """Fill nll and perplexity of a run's layouts, the original's and the baselines' among them, and write pareto.csv
    after each.

    overwrite forgets all earlier measurements. Merges that need calibration, and refinement, use the run's own
    calibration text, never the one that is measured on. layouts: "spread" (the baselines, the best stock layouts and 12
    along the front), "all", or numbers with commas. merge: the run's own unless given; another one adds rows; layouts
    that only averaging makes sense of keep the mean. refine: refine each layout first. set: parameters of merges, over
    the run's. What is measured already is not measured again. Raises GrouperError where the run was measured on other
    text, or refined otherwise. memory: bytes that the model may take; a larger one is streamed, in float32. Where
    several ranks run this, layouts are shared out among them.
    """
    ranks = started_ranks()
    folder = RunFolder.open(Path(run))
    with locked_by_first(ranks, folder.path):
        front, settings = folder.front(), folder.settings
        assignments = (*settings.options.set, *set)
        check_assignments(set, MERGES)
        chosen_merge = MERGES.configured(assignments).named(merge or front.own_merge)
        checkpoint = settings.open_checkpoint()
        calibration = settings.calibration(keep_calibration)
        if refine and calibration is None:
            raise GrouperError(f"{run} was searched without text, so there is nothing to refine on: search with --text")
        tokens = text_of(checkpoint, source, window, limit)
        numbers = choose(front, layouts)
        refine = refine and refine.for_device(device)
        measuring = Measuring(source.name, digest(tokens), tuple(tokens.shape), dtype, set)
        front = ranks.first_does(lambda: measuring.check(folder, front, refine, overwrite))
        wanted = add_rows(front, numbers, folder, chosen_merge, REFINED if refine else "")
        todo = [i for i in wanted if np.isnan(front.table.loc[i, "nll"])]
        regrouper = Regrouper(checkpoint, calibration, device, memory, ranks)
        if todo and dtype != COMPUTING:
            regrouper.model = InMemoryModel(checkpoint, device, getattr(torch, dtype))
        fitting = partial(merge_for, merge=chosen_merge)
        fill_in(folder, front, todo, regrouper, fitting, refine, tokens, progress)
        title = f"{checkpoint.title}: KV cache against what it costs"
        ranks.first_does(lambda: draw(front, folder.path / "pareto.svg", title))
        return front


def fill_in(
    folder: RunFolder,
    front: ParetoFront,
    todo: list[int],
    regrouper: Regrouper,
    fitting: Callable[[HeadLayout], Merge],
    refine: RefineOptions | None,
    tokens: Tensor,
    progress: Progress,
) -> None:
    """Measure these rows, one a rank at a time, and write pareto.csv after each time."""
    ranks = regrouper.ranks
    if todo and not ranks.alone and regrouper.calibration:
        regrouper.kept_moments(progress)  # which all ranks collect together

    def measure(index: int) -> float:
        row = front.table.loc[index]
        layout = folder.layout(int(row["layout"]))
        return measured_nll(regrouper, row["method"] == ORIGINAL, layout, fitting(layout), refine, tokens)

    for begin in range(0, len(todo), ranks.size):
        one_each = todo[begin : begin + ranks.size]
        values = ranks.gather(measure(one_each[ranks.rank]) if ranks.rank < len(one_each) else None)
        for done, (index, value) in enumerate(zip(one_each, values), begin + 1):
            if not math.isfinite(value):
                number = front.table.loc[index, "layout"]
                raise GrouperError(f"layout {number} gives {value} nats per token: are the model's weights damaged?")
            front.table.loc[index, ["nll", "perplexity"]] = value, math.exp(min(value, 700))
            row = front.table.loc[index]
            what = f"layout {row['layout']}, {row['method']}, {row['kv_ratio']:.0%}"
            progress(done, len(todo), f"{what}: {value:.4f} nats per token")
        front.mark()
        ranks.first_does(lambda: front.write(folder.path / "pareto.csv"))


def measured_nll(
    regrouper: Regrouper, original: bool, layout, merge: Merge, refine: RefineOptions | None, tokens
) -> float:
    """Nats per token of the model as it came, or under this layout, merged and perhaps refined."""
    model = regrouper.model
    if original:
        return nll(model.model, tokens) if isinstance(model, InMemoryModel) else streamed_nll(model, tokens)
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        if refine:
            merged = regrouper.refined(layout, merge, refine, folder)
        else:
            merged = regrouper.merged(layout, merge, None if isinstance(model, InMemoryModel) else folder)
        if not isinstance(model, InMemoryModel):
            return streamed_nll(model, tokens, layout, merged)
        with model.installed(layout, merged) as installed:
            return nll(installed, tokens)


def choose(front: ParetoFront, layouts: str) -> list[int]:
    """Layout numbers for "spread", "all" or "3,17,40"."""
    table = front.table.drop_duplicates("layout")
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
        return numbers
    baselines = table[table["method"].isin(not_found())]
    found = table.drop(baselines.index)
    if len(baselines) > MOST_BASELINES:
        baselines = baselines[baselines["deploy"] == "stock"]
    stock = found[found["deploy"] == "stock"].sort_values("error").drop_duplicates("kv_bytes_per_token")
    along = found[found["on_front"] == 1].sort_values("kv_bytes_per_token")
    places = np.linspace(0, len(along) - 1, min(SPREAD, len(along))).round().astype(int)
    return sorted({*baselines["layout"], *stock["layout"], *along.iloc[np.unique(places)]["layout"]})


def add_rows(front: ParetoFront, numbers: list[int], folder: RunFolder, merge: Merge, refined: str) -> list[int]:
    """The rows of these layouts under this merge, made where there are none; the original is the same under all."""
    table = front.table
    rows, new = [], []
    for number in numbers:
        of_layout = table[table["layout"] == number]
        first = of_layout.iloc[0]
        label = f"{merge_for(folder.layout(number), merge).name}{refined}"
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


@dataclass(frozen=True)
class Measuring:
    """evaluation.json: what a run's measurements were made on. All are on one text, all with one set of parameters, and
    all refined ones refined alike, or the numbers could not be compared."""

    text: str
    digest: str
    windows: tuple[int, ...]
    dtype: str
    set: tuple[str, ...] = ()

    def to_data(self) -> dict:
        data = {"text": self.text, "digest": self.digest, "windows": list(self.windows), "dtype": self.dtype}
        return {**data, **({"set": list(self.set)} if self.set else {})}

    def check(
        self, folder: RunFolder, front: ParetoFront, refine: RefineOptions | None, overwrite: bool
    ) -> ParetoFront:
        """Note it, or raise GrouperError where earlier measurements were made otherwise; `overwrite` forgets them.
        Returns the front, without what was forgotten."""
        path = folder.path / "evaluation.json"
        before = json_object(path.read_text(errors="replace"), str(path)) if path.is_file() else {}
        refined_before = before.pop("refinement", None)
        refinement = refine and {"scope": refine.scope, "tokens": refine.tokens}
        measured = front.table["nll"].notna().any()
        if measured and before and not overwrite:
            if {**before, "text": ""} != {**self.to_data(), "text": ""}:
                what = "other text, windows or parameters"
                raise GrouperError(
                    f"{folder.path} was measured on {what}: use the same, or --overwrite to measure anew"
                )
            if refinement and refined_before and refinement != refined_before:
                again = "do the same, or --overwrite to measure anew"
                was = ", ".join(f"{what} {value}" for what, value in dict(refined_before).items())
                raise GrouperError(f"layouts of {folder.path} were refined otherwise ({was}): {again}")
        if measured and overwrite:
            front.table[["nll", "perplexity"]] = np.nan
            front.mark()
            front.write(folder.path / "pareto.csv")
            refined_before = None
        refinement = refinement or refined_before
        data = {**self.to_data(), **({"refinement": refinement} if refinement else {})}
        write_text(path, json.dumps(data, indent=2) + "\n")
        return front


def comparable(
    folder: RunFolder, front: ParetoFront, refine: RefineOptions | None, set: tuple[str, ...]
) -> ParetoFront:
    """The front without measurements that were made with other parameters of merges, or of layouts that were refined
    otherwise, than what is to be exported. refine: filled in by device."""
    path = folder.path / "evaluation.json"
    made = json_object(path.read_text(errors="replace"), str(path)) if path.is_file() else {}
    table = front.table.copy()
    other = table["nll"].notna() & (tuple(made.get("set", ())) != set)
    if refine is not None and made.get("refinement") != {"scope": refine.scope, "tokens": refine.tokens}:
        other |= table["merge"].str.endswith(REFINED)
    table.loc[other & (table["method"] != ORIGINAL), ["nll", "perplexity"]] = np.nan
    front = ParetoFront(table)
    front.mark()
    return front
