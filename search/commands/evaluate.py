"""`grouper evaluate`: losses of a run's layouts, or of a model."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource, named_sources
from grouper.errors import GrouperError
from grouper.evaluation.options import TaskOptions
from grouper.kv_cache import KEPT_IN
from grouper.machine import Machine
from grouper.names import expected
from grouper.option_fields import KEY, Option, option, same, words_of
from grouper.refinement.options import RefineOptions
from search.commands.options import Config, Json, command
from search.commands.saying import print_front, print_json, tell, tell_next, typed_command
from search.options import COMPUTING, MEASURED, SearchOptions
from search.runs.selection import Selection

if TYPE_CHECKING:
    from search.runs.pareto import ParetoFront

DTYPES = ("float32", "bfloat16", "float16", "float64")
OF_SOURCE = {f.name: f.metadata[KEY] for f in fields(TextSource) if f.metadata}


@dataclass(frozen=True)
class OfRuns:
    """Options that apply to runs only."""

    layouts: str = option(
        MEASURED,
        "Layouts to measure: spread (baselines, stock layouts, 12 along the front), all, or numbers like 3,17.",
    )
    merge: str | None = same(Selection, "merge")
    refine: bool = option(False, "Refine each layout on the run's calibration text.", panel="Refinement")
    keep_calibration: Path | None = same(Calibration, "keep")
    kv_cache: tuple[str, ...] | None = option(
        None, "KV cache types, comma-separated: measure also with keys and values rounded to each.",
        panel="Text", metavar="TYPES", read=words_of, words=KEPT_IN,
    )  # fmt: skip
    dtype: str = option(COMPUTING, "Data type to compute in.", panel="Machine", words=DTYPES)
    set: tuple[str, ...] = option(
        (), "Set a parameter of a merge.", panel="Layout", metavar="NAME.FIELD=VALUE", several=True
    )
    overwrite: bool = option(False, "Discard earlier measurements.", panel="Output")

    def refuse(self, model: str, refinement: RefineOptions) -> None:
        """Raise GrouperError if one of these options is given for a model."""
        for options in (self, refinement):
            for f in fields(options):
                if f.metadata and getattr(options, f.name) != f.default:
                    flag = f"--{(f.metadata[KEY].name or f.name).replace('_', '-')}"
                    raise GrouperError(f"{model} is a model, and {flag} is for runs: leave it away")


@command("evaluate", first="text tasks layouts limit window refine device json")
def run(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="A run, an exported or healed model, or any model of a known family."),
    ],
    machine: Machine,
    tasks: TaskOptions | None,
    of_runs: OfRuns,
    refinement: RefineOptions,
    text: Annotated[
        list[str] | None,
        Option(
            "Plain text, JSONL with `text` or chat `messages`, or `demo`. For several texts, NAME=FILE each.",
            metavar="FILE",
        ),
    ] = None,
    dataset: Annotated[str | None, OF_SOURCE["dataset"]] = None,
    images: Annotated[str | None, OF_SOURCE["images"]] = None,
    base: Annotated[str | None, Option("Original of an export, if grouper.json does not name it.", "Layout")] = None,
    window: Annotated[int, Option("Window length in tokens.", "Text")] = SearchOptions.window,
    limit: Annotated[
        int | None, Option("Most windows of each text (default: 64) and items of each task (default: all).", "Text")
    ] = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Measure layouts of a run, or a model, on text and tasks. Merges in memory; resumable."""
    from search.commands.bars import bar
    from search.commands.measured_tables import evaluated_table
    from search.evaluation.layouts import evaluate
    from search.evaluation.models import evaluate_model, names_a_model
    from search.runs.folder import RunFolder

    source = named_sources(text or [], dataset, "evaluation", images) if text or dataset or images else None
    tasks = tasks and replace(tasks, limit=limit)
    if names_a_model(run):
        of_runs.refuse(run, refinement)
        how: Any = {"tasks": tasks, "base": base, "window": window, "limit": limit, "command": typed_command()}
        with bar("measuring") as progress:
            found = evaluate_model(run, source, **how, machine=replace(machine, tell=tell, progress=progress))
        return print_json(found.to_data()) if json else evaluated_table(found)
    if base:
        raise GrouperError(f"{run} is a run, and --base is for exported folders: leave it away")
    check_dtype(of_runs.dtype)
    refine = replace(refinement, seed=RunFolder.open(Path(run)).settings.options.seed) if of_runs.refine else None
    with bar("measuring", says_how_long=True) as progress:
        machine = replace(machine, tell=tell, progress=progress)
        asked = {**vars(of_runs), "tasks": tasks, "window": window, "limit": limit, "refine": refine}
        front = evaluate(run, source, **asked, machine=machine)
    say_what_was_found(run, front)
    print_front(front, json, Path(run))


def check_dtype(name: str | None) -> None:
    """Raise GrouperError for an unknown data type."""
    if name is not None and name not in DTYPES:
        raise GrouperError(f"unknown dtype {name!r}: {expected(name, DTYPES)}")


def say_what_was_found(run: str, front: "ParetoFront") -> None:
    """Print the tables, and a matching export command."""
    from search.commands.console import closing_table
    from search.commands.measured_tables import kept_table, positions_table, proxies_table, tasks_table
    from search.evaluation.proxies import read_proxies
    from search.runs.folder import RunFolder
    from search.runs.picking import representative
    from search.runs.record import refining_options

    closing_table(front, run)
    kept_table(front)
    positions_table(front)
    tasks_table(front)
    proxies_table(read_proxies(run))
    half = representative(front)
    budget = ("--kv-ratio", "1/2") if half[front.bounded] <= 0.5 else ("--layout", half["layout"])
    tell_next("export", run, "-o", "regrouped", *budget, *refining_options(RunFolder.open(Path(run))))
