"""`grouper inspect`: heads of a model, and the savings of fewer KV heads."""

from dataclasses import asdict
from typing import Annotated

import typer

from grouper.kv_cache import BYTES
from grouper.option_fields import Option
from search.commands.bars import bar
from search.commands.options import Config, Json, command
from search.commands.saying import print_json, tell_next

ON = {"pictures": ("--images", "pictures"), "pairs": ("--text", "pairs.tsv"), "sounds": ("--text", "sounds.tsv")}


@command("inspect", first="families all revision context batch card kv_dtype json config")
def run(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A folder, a Hub id, or `demo`.")] = None,
    families: Annotated[bool, Option("List the supported model families as a Markdown table.")] = False,
    all: Annotated[
        bool, Option("With --families: prove every model type of the installed transformers. Takes several minutes.")
    ] = False,
    revision: Annotated[str | None, Option("Branch, tag or commit of a Hub model.")] = None,
    context: Annotated[int | None, Option("Context length in tokens, for cache sizes.")] = None,
    batch: Annotated[int, Option("Batch size in sequences, for cache sizes.")] = 1,
    card: Annotated[str | None, Option("GPU memory, e.g. 80GB: show how many sequences fit.", metavar="SIZE")] = None,
    kv_dtype: Annotated[str, Option("Data type of the KV cache, for byte counts.", words=BYTES)] = "bfloat16",
    json: Json = False,
    config: Config = None,
) -> None:
    """Show heads, KV bytes and possible groupings of a model; reads only config.json and tensor headers."""
    if all and not families:
        raise typer.BadParameter("--all goes with --families")
    if all:
        return _survey(json)
    if families:
        from fitness import FITNESSES
        from grouper.families.table import family_rows, markdown

        rows = family_rows(FITNESSES)
        return print_json([asdict(row) for row in rows]) if json else print(markdown(rows))
    if model is None:
        raise typer.BadParameter("give a MODEL, or --families")
    from grouper.checkpoint.checkpoint import Checkpoint
    from grouper.families.inspection import inspect
    from grouper.model.memory import parsed_bytes
    from search.commands.console import inspection

    memory = None if card is None else parsed_bytes(card, "--card")
    found = inspect(Checkpoint.open(model, revision, write=False), kv_dtype, context, batch, memory)
    if json:
        return print_json(found.to_data())
    inspection(found)
    on = ON.get(found.reads, ("--text", "calibration.txt"))
    tell_next("regroup", model, "-o", "half", "--kv-ratio", "1/2", *on)
    tell_next("search", model, "-o", "run", *on)


def _survey(json: bool) -> None:
    """Print what a proof says of every model type."""
    from grouper.families.derived import survey

    with bar("proving", says_how_long=True) as progress:
        rows = survey.survey_of(progress=progress)
    print_json([asdict(row) for row in rows]) if json else print(survey.markdown(rows))
