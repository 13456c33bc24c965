"""`grouper demo`: the whole job on the model in the box."""

from pathlib import Path
from typing import Annotated

from grouper.option_fields import Option
from search.commands.options import command
from search.options import DEMO_FOLDER


@command("demo", first="output")
def run(
    output: Annotated[Path, Option("Folder for what it makes.", short="-o", metavar="FOLDER")] = DEMO_FOLDER,
) -> None:
    """The whole job on the model in the box, in about a minute: no download, no GPU."""
    from search.demo import run_demo

    run_demo(output)
