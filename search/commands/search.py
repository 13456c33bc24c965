"""`grouper search`: search a model's groupings and write a run."""

from pathlib import Path
from typing import Annotated

from grouper.calibration.calibration import Calibration
from grouper.machine import Machine
from grouper.option_fields import KEY, Option
from search.commands.options import Config, Json, Model, Overwrite, command
from search.commands.saying import other_text, print_front, tell, tell_next, typed_command
from search.options import SearchOptions

WITHOUT_TEXT = (
    "searched without text: what enters attention was guessed from the norms' weights. On a real model that costs much "
    "(SmolLM2-135M, docs/results.md: +4.79 nats per token instead of +0.56): search again with --text FILE, of text "
    "like what it will serve, or --text wikitext (needs kv-grouper[datasets])."
)
Keep = Annotated[Path | None, Calibration.__dataclass_fields__["keep"].metadata[KEY]]
NoKeep = Annotated[bool, Option("Do not keep the calibration in the run, where later commands find it.", "Text")]
Jobs = Annotated[str, Option("Layers searched in parallel; auto: as many as cores and memory allow.", "Machine")]
Revision = Annotated[str | None, Option("Branch, tag or commit of a Hub model.", "Search")]


@command("search", first="output text dataset images method device overwrite json")
def run(
    model: Model,
    output: Annotated[Path, Option("Folder for the run; the same command resumes there.", short="-o", metavar="RUN")],
    options: SearchOptions,
    machine: Machine,
    jobs: Jobs = "auto",
    keep_calibration: Keep = None,
    no_keep_calibration: NoKeep = False,
    revision: Revision = None,
    overwrite: Overwrite = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Find heads that can share: writes the Pareto front of KV bytes against error; resumable."""
    from dataclasses import replace

    from search.commands.bars import bar
    from search.commands.console import closing_table
    from search.run import search

    keep = keep_calibration or not no_keep_calibration
    with bar("searching", says_how_long=True) as progress:
        front = search(
            model, output, options, revision=revision, jobs=jobs, keep_calibration=keep,
            machine=replace(machine, tell=tell, progress=progress), overwrite=overwrite, command=typed_command(),
        )  # fmt: skip
    closing_table(front, str(output))
    if options.calibration() is None and options.fitness != "weight":
        tell(WITHOUT_TEXT)
    tell_next("evaluate", output, *other_text(options.images))
    print_front(front, json, output)
