"""`grouper evaluate`: what layouts of a run, or a model, lose."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grouper.calibration.source import TextSource, named_sources
from grouper.errors import GrouperError
from grouper.evaluation.options import TaskOptions
from grouper.machine import Machine
from grouper.merging import MERGES
from grouper.names import expected
from grouper.option_fields import KEY, Option
from grouper.refinement.options import RefineOptions
from search.commands.options import Assignments, Config, Json, Overwrite, command
from search.commands.saying import print_front, print_json, tell_next
from search.commands.search import Keep
from search.options import COMPUTING, MEASURED, SearchOptions

if TYPE_CHECKING:
    from search.runs.pareto import ParetoFront

DTYPES = ("float32", "bfloat16", "float16", "float64")
OF_SOURCE = {f.name: f.metadata[KEY] for f in TextSource.__dataclass_fields__.values() if f.metadata}


@command("evaluate", first="text tasks layouts limit window refine device json")
def run(
    run: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, an exported or healed folder, or a model.")],
    machine: Machine,
    tasks: TaskOptions | None,
    refinement: RefineOptions,
    text: Annotated[
        list[str] | None,
        Option("Plain text, JSONL with `text` or chat `messages`, or `demo`; NAME=FILE for each of several.",
               metavar="FILE"),
    ] = None,
    dataset: Annotated[str | None, OF_SOURCE["dataset"]] = None,
    images: Annotated[str | None, OF_SOURCE["images"]] = None,
    merge: Annotated[
        str | None, Option("How heads become one; the run's own unless given.", "Layout", words=MERGES)
    ] = None,
    refine: Annotated[bool, Option("Refine each layout on the run's calibration text.", "Refinement")] = False,
    keep_calibration: Keep = None,
    layouts: Annotated[str, Option("spread (baselines, stock, 12 along the front), all, or 3,17.")] = MEASURED,
    set: Assignments = None,
    base: Annotated[str | None, Option("An exported folder's original, if it is not found.", "Layout")] = None,
    window: Annotated[int, Option("Tokens of a window.", "Text")] = SearchOptions.window,
    limit: Annotated[int | None, Option("Windows of text, and items of each task, at most.", "Text")] = None,
    dtype: Annotated[str, Option("Type of numbers to compute in.", "Machine", words=DTYPES)] = COMPUTING,
    overwrite: Overwrite = False,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Measure what layouts or models lose, on text and by tasks, merging in memory; resumable."""
    from search.commands.bars import bar
    from search.commands.measured_tables import evaluated_table
    from search.evaluation.layouts import evaluate
    from search.evaluation.models import evaluate_model, names_a_model
    from search.runs.folder import RunFolder

    source = named_sources(text or [], dataset, "evaluation", images) if text or dataset or images else None
    tasks = tasks and replace(tasks, limit=limit)
    if names_a_model(run):
        given = {
            "--merge": merge, "--refine": refine, "--scope": refinement.scope, "--refine-tokens": refinement.tokens,
            "--long-share": refinement.long_share is not None, "--set": set, "--keep-calibration": keep_calibration,
            "--layouts": layouts != MEASURED, "--overwrite": overwrite, "--dtype": dtype != COMPUTING,
        }  # fmt: skip
        refuse_options_of_runs(run, given)
        with bar("measuring"):
            found = evaluate_model(run, source, tasks=tasks, base=base, window=window, limit=limit, machine=machine)
        return print_json(found.to_data()) if json else evaluated_table(found)
    if base:
        raise GrouperError(f"{run} is a run, and --base is for exported folders: leave it away")
    check_dtype(dtype)
    seed = RunFolder.open(Path(run)).settings.options.seed
    with bar("measuring", says_how_long=True) as progress:
        front = evaluate(
            run, source, tasks=tasks, merge=merge, refine=replace(refinement, seed=seed) if refine else None,
            layouts=layouts, window=window, limit=limit, machine=replace(machine, progress=progress), dtype=dtype,
            keep_calibration=keep_calibration, set=tuple(set or ()), overwrite=overwrite,
        )  # fmt: skip
    say_what_was_found(run, front)
    print_front(front, json, Path(run))


def refuse_options_of_runs(model: str, given: Mapping[str, object]) -> None:
    """Raise GrouperError where one of these is given."""
    if strange := [name for name, value in given.items() if value]:
        raise GrouperError(f"{model} is a model, and {strange[0]} is for runs: leave it away")


def check_dtype(name: str | None) -> None:
    """Raise GrouperError where no numbers are called so."""
    if name is not None and name not in DTYPES:
        raise GrouperError(f"unknown dtype {name!r}: {expected(name, DTYPES)}")


def say_what_was_found(run: str, front: "ParetoFront") -> None:
    """Tables, and an export that fits them."""
    from search.commands.console import closing_table
    from search.commands.measured_tables import positions_table, proxies_table, tasks_table
    from search.evaluation.proxies import read_proxies
    from search.runs.folder import RunFolder
    from search.runs.picking import ratio_column, representative
    from search.runs.record import refining_options

    closing_table(front, run)
    positions_table(front)
    tasks_table(front)
    proxies_table(read_proxies(run))
    half = representative(front)
    budget = ("--kv-ratio", "1/2") if half[ratio_column(front)] <= 0.5 else ("--layout", half["layout"])
    tell_next("export", run, "-o", "regrouped", *budget, *refining_options(RunFolder.open(Path(run))))
