"""`grouper check`: repeat the self-test of an exported folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from grouper.names import printable
from grouper.option_fields import Option
from search.commands.options import Json, command
from search.commands.saying import print_json


@command("check", first="base json")
def run(
    exported: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `grouper export` or `uptrain` wrote.")],
    base: Annotated[str | None, Option("The original, if grouper.json does not lead to it.")] = None,
    json: Json = False,
) -> None:
    """Repeat the self-test of an exported folder, after a download or an upgrade."""
    from grouper.export.check import check_folder
    from search.commands.bars import bar

    with bar("checking"):
        found = check_folder(exported, base)
    if json:
        return print_json(asdict(found))
    print(f"self-test passed: {printable(found.summary)}")
