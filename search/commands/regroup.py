"""`grouper regroup`: turn a model into the same model with fewer KV heads, in one command."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from grouper.export.hub import Destination
from grouper.export.options import ExportOptions
from grouper.machine import Machine
from grouper.option_fields import Option, same
from grouper.refinement.options import RefineOptions
from search.commands.options import Config, Json, Model, command
from search.commands.saying import print_json, tell, tell_next, tell_next_of_export, typed_command
from search.commands.search import WITHOUT_TEXT, Jobs, Keep, Revision
from search.options import HeldOutOptions, SearchOptions
from search.runs.selection import Selection


@dataclass(frozen=True)
class Repository(Destination):
    """Destination for a command in which --revision belongs to the source model."""

    revision: str | None = same(Destination, "revision", name="push_revision")


@command("regroup", first="output kv_ratio text evaluation refine format push_to_hub device")
def run(
    model: Model,
    output: Annotated[Path, Option("Folder for the model; the run is written to DIR.run.", short="-o", metavar="DIR")],
    selection: Selection,
    options: SearchOptions,
    measuring: HeldOutOptions,
    refinement: RefineOptions,
    export: ExportOptions,
    destination: Repository | None,
    machine: Machine,
    refine: Annotated[bool, Option("Refine layer by layer, on --text.", "Refinement")] = True,
    jobs: Jobs = "auto",
    keep_calibration: Keep = None,
    revision: Revision = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Search, merge, refine, write, self-test and measure. Keeps half of the KV cache by default."""
    from search.commands.bars import bar
    from search.commands.console import exported_summary
    from search.commands.measured_tables import before_and_after
    from search.one_call import HALF, regroup_into

    if selection.is_open:
        selection = replace(selection, kv_ratio=HALF.kv_ratio)
    with bar("regrouping", says_how_long=True) as progress:
        done = regroup_into(
            model, output, selection, options, refinement if refine else None, export, destination, measuring,
            revision=revision, jobs=jobs, keep_calibration=keep_calibration, command=typed_command(),
            machine=replace(machine, tell=tell, progress=progress),
        )  # fmt: skip
    if json:
        print_json(done.to_data())
    else:
        exported_summary(done.exported, measured=bool(done.measured))
        before_and_after(done.measured)
        tell_next_of_export(output, options.images, measured=bool(done.measured))
        tell_next("layouts", done.run)
    if options.calibration() is None:
        tell(WITHOUT_TEXT)
    if done.exported.not_refined:
        tell(f"not refined: {done.exported.not_refined}")
