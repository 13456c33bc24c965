"""Measurement of a run's layouts: nats per token and closeness to the original on text, scores on tasks."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grouper.attention import Merged
from grouper.calibration.calibration import WINDOW, Calibration
from grouper.calibration.source import TextSource
from grouper.calibration.text import digest
from grouper.compress import Regrouper
from grouper.errors import GrouperError
from grouper.evaluation.tasks import TaskOptions
from grouper.layout import HeadLayout
from grouper.machine import Machine
from grouper.merging import MERGES, Merge, merge_for
from grouper.progress import Progress, duration
from grouper.ranks import ALONE, Ranks, locked_by_first
from grouper.refinement.options import RefineOptions, RefinePlan
from grouper.registry import check_assignments
from grouper.running.in_memory import InMemoryModel
from grouper.scratch import ScratchFolder
from search.evaluation.choosing import add_rows, choose
from search.evaluation.meter import Meter, kinds_of
from search.evaluation.proxies import FILE as PROXIES
from search.evaluation.proxies import judge_proxies, write_proxies
from search.evaluation.texts import Texts, amount, seconds_of, texts_of
from search.methods.registry import ORIGINAL
from search.options import COMPUTING, MEASURED
from search.runs.columns import JUDGES, called
from search.runs.folder import RunFolder
from search.runs.pareto import ParetoFront
from search.runs.picture import draw
from search.runs.record import REFINED, Measuring, windows_before
from search.runs.samples import note_sample

TITLE = "KV cache against what it costs"  # title of the picture
Errors = list[tuple[float, float]]
Kept = dict[str, dict[str, float]]  # by KV cache type
Measured = tuple[dict[str, float], Kept, Errors, dict[str, str]]


def evaluate(
    run: str | Path,
    source: TextSource | Texts | None = None,
    *,
    tasks: TaskOptions | None = None,
    merge: str | None = None,
    refine: RefineOptions | None = None,
    layouts: str = MEASURED,
    window: int = WINDOW,
    limit: int | None = None,
    machine: Machine | None = None,
    dtype: str = COMPUTING,
    kv_cache: tuple[str, ...] | None = None,
    keep_calibration: str | Path | None = None,
    set: tuple[str, ...] = (),
    overwrite: bool = False,
) -> ParetoFront:
    """Measure layouts of a run and the original, and write pareto.csv after each.

    source: text, or several texts by name. Each gives nll and perplexity, the KL divergence from the original (`kl`)
    and the share of equal most likely tokens (`agreement`), with standard errors. Several texts give their mean, and a
    column for each ("nll:NAME"). tasks: of lm-evaluation-harness, with a column for each metric ("hellaswag,acc_norm").

    overwrite: discard all earlier measurements. Merges that need calibration, and refinement, use the run's own
    calibration text, never the text that is measured on. layouts: "spread" (the baselines, the best stock layouts and
    12 along the front), "all", or comma-separated numbers. merge: default is the run's own; another one adds rows.
    refine: refine each layout first. kv_cache: other KV cache types to measure with as well (see grouper.cache_types),
    in rows of their own. set: parameters of merges, which override the run's. limit: windows of each text; default is
    as many as before, or MEASURED_WINDOWS. Nothing is measured twice, except on more windows than before. Raises
    GrouperError if the run was measured on other text, or refined otherwise. Several ranks each measure one layout at a
    time; left-over layouts are measured by all ranks together, each on a share of the text.
    """
    machine = machine or Machine()
    ranks = machine.ranks
    folder = RunFolder.open(Path(run))
    with locked_by_first(ranks, folder.path):
        front, settings = folder.front(machine.tell), folder.settings
        assignments = (*settings.options.set, *set)
        check_assignments(set, MERGES)
        chosen_merge = MERGES.configured(assignments).named(merge or front.own_merge)
        checkpoint = settings.open_checkpoint()
        calibration = settings.calibration(keep_calibration)
        if refine:
            check_refinement(folder, calibration, dtype)
        kept = folder.kept_tokens()
        ranks.first_does(kept.begin)
        limit = windows_before(folder, named(source), window) if limit is None and not overwrite else limit
        texts = texts_of(checkpoint, source, tasks, window, limit, kept)
        numbers = choose(front, layouts)
        plan = refine.plan(machine.device) if refine else None
        measuring = measuring_of(source, texts, tasks, dtype, set)
        front = ranks.first_does(lambda: measuring.check(folder, front, plan, overwrite, machine.tell))
        wanted = add_rows(front, numbers, folder, chosen_merge, REFINED if plan else "")
        regrouper = Regrouper(checkpoint, calibration, machine.device, machine.memory, ranks, kept, folder.moments)
        kinds = kinds_of(kv_cache, settings.options.kv_dtype, regrouper.architecture, texts)
        meter = Meter(regrouper, texts, tasks, dtype, kinds)
        todo = [i for i in wanted if meter.is_missing(front.table.loc[i].to_dict()) or meter.lacks_kept(front, i)]
        fitting = partial(merge_for, merge=chosen_merge)
        announce(folder, front, todo, meter, fitting, plan, machine)
        fill_in(folder, front, todo, meter, fitting, plan, machine.progress)
        if todo or not (folder.path / PROXIES).is_file():  # else they are unchanged
            proxies = judge_proxies(folder, front, regrouper, assignments)
            ranks.first_does(lambda: write_proxies(folder, proxies))
        ranks.first_does(lambda: draw(front, folder.path / "pareto.svg", f"{checkpoint.title}: {TITLE}"))
        return front


def check_refinement(folder: RunFolder, calibration: Calibration | None, dtype: str) -> None:
    """Raise GrouperError if layouts cannot be refined before they are measured."""
    if dtype != COMPUTING:
        raise GrouperError(f"refinement computes in {COMPUTING}: drop --dtype {dtype} or --refine")
    if calibration is None:
        raise GrouperError(
            f"{folder.path} was searched without text, so there is nothing to refine on: search with --text"
        )


def measuring_of(
    source: TextSource | Texts | None, texts: dict[str, Any], tasks: TaskOptions | None, dtype: str, set: tuple
) -> Measuring:
    about = None if tasks is None else {"limit": tasks.limit, "few_shot": tasks.few_shot}
    if source is None or not texts:
        return Measuring(None, None, None, dtype, set, about)
    if isinstance(source, TextSource):
        tokens = texts[""]
        return Measuring(source.name, digest(tokens), tuple(tokens.shape), dtype, set, about)
    digests = " ".join(f"{name}={digest(tokens)}" for name, tokens in texts.items())
    return Measuring(named(source), digests, tuple(list(tokens.shape) for tokens in texts.values()), dtype, set, about)


def named(source: TextSource | Texts | None) -> str | None:
    """Name of the text, or names of several."""
    if source is None:
        return None
    if isinstance(source, TextSource):
        return source.name
    return ", ".join(f"{name}={one.name}" for name, one in source.items())


def announce(
    folder: RunFolder,
    front: ParetoFront,
    todo: list[int],
    meter: Meter,
    fitting: Callable[[HeadLayout], Merge],
    refine: RefinePlan | None,
    machine: Machine,
) -> None:
    """Calibrate if any of these rows needs a merge, and print the amount of work and its estimated time."""
    regrouper, rows = meter.regrouper, front.table.loc[todo]
    merged = rows[rows["method"] != ORIGINAL]
    if len(merged) and regrouper.calibration:
        regrouper.kept_moments(machine.progress)
    each = seconds_of(regrouper.model, meter.texts) if todo and machine.ranks.alone else None
    if each is None:
        return
    seconds = each  # for the original
    if len(merged):
        layout = folder.layout(int(merged["layout"].iloc[-1]))
        began = time.perf_counter()
        regrouper.merged(layout, fitting(layout))(0)
        merging = (time.perf_counter() - began) * len(layout.layers)
        seconds += len(merged) * (each + merging)
        seconds += len(merged) * regrouper.estimate(layout, fitting(layout), refine) if refine else 0
    beside = ", beside the time that tasks take" if meter.asked else ""
    machine.tell(f"measuring {len(todo)} layouts on {amount(meter.texts)}: about {duration(seconds)}{beside}")


def fill_in(
    folder: RunFolder,
    front: ParetoFront,
    todo: list[int],
    meter: Meter,
    fitting: Callable[[HeadLayout], Merge],
    refine: RefinePlan | None,
    progress: Progress,
    merged: Merged | None = None,
) -> None:
    """Measure these rows and write pareto.csv after each round. Each rank measures one row at a time; left-over rows
    are measured by all ranks together. merged: weights of the layers, if they are merged and refined already and all
    rows but the original's are of that layout."""
    regrouper = meter.regrouper
    ranks = regrouper.ranks
    if todo and not ranks.alone and regrouper.calibration:
        regrouper.kept_moments(progress)  # all ranks collect them together
    if todo and not ranks.alone:
        meter.originals  # noqa: B018 - computed by all ranks together, too

    def measure(index: int, together: Ranks = ALONE) -> Measured:
        row = front.table.loc[index]
        layout = folder.layout_of(row)
        return measured(meter, row["method"] == ORIGINAL, layout, fitting(layout), refine, merged, together)

    for begin in range(0, len(todo), ranks.size):
        one_each = todo[begin : begin + ranks.size]
        if len(one_each) < ranks.size:
            found = [measure(index, ranks) for index in one_each]
        else:
            mine = [measure(index) for index in ranks.share(one_each)]
            found = [one for of_rank in ranks.gather(mine) for one in of_rank]
        for done, (index, (values, kept, errors, sample)) in enumerate(zip(one_each, found), begin + 1):
            number = front.table.loc[index, "layout"]
            if not math.isfinite(values.get("nll", 0.0)):
                raise GrouperError(
                    f"layout {number} gives {values['nll']} nats per token: are the model's weights damaged?"
                )
            front.fill(index, values)
            row = front.table.loc[index]
            for name, of_kind in kept.items():
                kv_bytes = folder.layout_of(row).kv_bytes_per_token(name)
                front.kept = front.kept.filled(row, front.measured_columns, name, kv_bytes, of_kind)
            if errors and ranks.first:
                folder.note_refined(int(number), row["merge"], errors)
            if sample and ranks.first:
                note_sample(folder.path, int(number), row["merge"], **sample)
            what = f"layout {number}, {row['method']}, {row['kv_ratio']:.0%}"
            progress(done, len(todo), f"{what}: {told(row)}" if meter.texts else what)
        front.mark()
        ranks.first_does(lambda: folder.write_front(front))


def told(row: pd.Series) -> str:
    """Message with the loss of a row, by the first measure that it has."""
    column = next((c for c in JUDGES if row.get(c, np.nan) == row.get(c, np.nan)), "error")
    return f"{row[column]:.4f} {called(column)}"


def measured(
    meter: Meter,
    original: bool,
    layout: HeadLayout,
    merge: Merge,
    refine: RefinePlan | None,
    done: Merged | None = None,
    ranks: Ranks = ALONE,
) -> Measured:
    """Measurements of the original, or of this layout, merged and perhaps refined: values by column, values by KV cache
    type, errors of each layer before and after refinement, and a sample of text if there is one. done: weights of the
    layout, if already merged. ranks: the ranks that measure it together."""
    if original:
        return meter.of_original(), meter.of_kept(None, ranks), [], meter.sample()

    def found(merged: Merged, errors: Errors) -> Measured:
        values, kept = meter.of_layout(layout, merged, ranks), meter.of_kept((layout, merged), ranks)
        return values, kept, errors, meter.sample((layout, merged))

    if done is not None:
        return found(done, [])
    regrouper = meter.regrouper
    with ScratchFolder() as folder:
        if refine:
            refined = regrouper.refined(layout, merge, refine, folder)
            errors = [refined.errors(layer) for layer in range(len(layout.layers))]
            return found(refined, errors)
        merged = regrouper.merged(layout, merge, None if isinstance(regrouper.model, InMemoryModel) else folder)
        return found(merged, [])
