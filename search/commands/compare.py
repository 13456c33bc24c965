"""`grouper compare`: comparison of several runs."""

from pathlib import Path
from typing import Annotated

import typer

from grouper.option_fields import Option
from search.commands.options import Json, command
from search.commands.saying import print_json


@command("compare", first="output json")
def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `grouper search` wrote.")],
    output: Annotated[
        Path | None, Option("Write a picture of all runs (.svg, .png or .pdf).", short="-o", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:
    """Compare runs: hypervolume, loss at equal cache, cache saved at equal loss."""
    from search.commands.console import comparison_table
    from search.runs.comparison import check_picture, compare, draw, to_data

    names: list[str | Path] = [str(run) for run in runs]
    if output is not None:
        check_picture(output, names)
    found, points = compare(names)
    if output is not None:
        draw(found, points, output)
    if json:
        print_json(to_data(found))
    else:
        comparison_table(found)
