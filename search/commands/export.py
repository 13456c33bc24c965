"""`grouper export`: write one layout of a run as a model, refined, self-tested, and pushed to the Hub on request."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from grouper.calibration.calibration import Calibration
from grouper.export.hub import Destination
from grouper.export.options import ExportOptions
from grouper.machine import Machine
from grouper.option_fields import Option
from grouper.refinement.options import RefineOptions
from search.commands.options import Assignments, Config, Json, Run, command
from search.commands.saying import print_json, tell, tell_next_of_export, typed_command
from search.runs.selection import ASKED_CACHES, Selection


@command("export", first="output kv_ratio layout text refine format push_to_hub device")
def run(
    run: Run,
    output: Annotated[Path, Option("Folder for the model.", short="-o", metavar="DIR")],
    selection: Selection,
    calibration: Calibration | None,
    refinement: RefineOptions,
    options: ExportOptions,
    destination: Destination | None,
    machine: Machine,
    set: Assignments = None,
    refine: Annotated[bool, Option("Refine layer by layer, on --text or the run's text.", "Refinement")] = True,
    kv_cache: Annotated[
        str | None,
        Option("Choose by measurements with this KV cache type, or any.", "Layout", words=ASKED_CACHES),
    ] = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Write the regrouped model in transformers or GGUF format and self-test it."""
    from search.commands.bars import bar
    from search.commands.console import exported_summary
    from search.commands.measured_tables import kept_cache_lines
    from search.export_run import export_from_run
    from search.runs.folder import RunFolder

    selection = replace(selection, kv_cache=kv_cache)
    with bar("writing") as progress:
        exported = export_from_run(
            run, output, selection, calibration, refinement if refine else None, options, destination,
            machine=replace(machine, tell=tell, progress=progress), set=tuple(set or ()), command=typed_command(),
        )  # fmt: skip
    if json:
        print_json(exported.to_data())
    else:
        exported_summary(exported)
        kept_cache_lines(exported)
        given = calibration and calibration.source.images
        tell_next_of_export(output, given or RunFolder.open(Path(run)).settings.options.images)
    if exported.not_refined:
        tell(f"not refined: {exported.not_refined}")
