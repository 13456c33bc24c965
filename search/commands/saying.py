"""Last lines of a command: results on stdout, the command to run next on stderr."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grouper.names import printable, without_secrets
from search.commands.console import ERR
from search.commands.options import as_flags

if TYPE_CHECKING:
    from search.runs.pareto import ParetoFront


def tell(line: str) -> None:
    """Print a line for people on stderr."""
    ERR.print(printable(as_flags(line)), soft_wrap=True)


def tell_next(*words: object) -> None:
    """Print the command to run next, with this command's values filled in."""
    tell(f"next: {shlex.join(['grouper', *map(str, words)])}")


def tell_next_of_export(output: Path, images: object, measured: bool = False) -> None:
    """Print the commands to run after an export to transformers. measured: the model was measured before it was
    written."""
    from search.evaluation.models import can_be_measured

    if can_be_measured(output):
        if not measured:
            tell_next("evaluate", output, *other_text(images))
        learnt = ("--images", "training") if images else ("--text", "training.txt")
        tell_next("uptrain", output, "-o", f"{output}-healed", *learnt)


def print_json(data: Any) -> None:
    print(without_secrets(json.dumps(data, indent=2)))


def print_front(front: "ParetoFront", as_json: bool, folder: Path) -> None:
    if as_json:
        print(front.front().to_json(orient="records"))
    else:
        print(printable(str(folder / "pareto.csv")))


def typed_command() -> str:
    """The command line as typed, without secrets, for the record."""
    return without_secrets(shlex.join(["grouper", *sys.argv[1:]]))


def other_text(images: object) -> tuple[str, str]:
    """Options that name the text or images to measure on."""
    return ("--images", "others") if images else ("--text", "other.txt")
