"""`grouper demo`: all steps on the bundled model."""

from pathlib import Path
from typing import Annotated

from grouper.option_fields import Option
from search.commands.options import command
from search.options import DEMO_FOLDER


@command("demo", first="output")
def run(
    output: Annotated[Path, Option("Folder for the demo's results.", short="-o", metavar="FOLDER")] = DEMO_FOLDER,
) -> None:
    """Run all steps on the bundled model, in about a minute; needs no download and no GPU."""
    from search.demo import run_demo

    run_demo(output)
