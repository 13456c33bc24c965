"""The YAML file of --config, with options of a command."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError
from grouper.parsing import shown, yaml_value

LARGEST = 2**16  # bytes
YAML = "expected YAML with the command's options"
EXPECTED = "expected a word, a number, true or false, or a list of these"


def read_options(path: Path, command: str, known: Collection[str], several: Collection[str]) -> dict[str, Any]:
    """Values by parameter. known: parameters of the command; several: parameters that take a list (for all others, list
    entries are joined by commas). Raises GrouperError for unknown options, and for values that are not plain."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise GrouperError(f"cannot read {path} ({type(error).__name__}): {YAML}") from error
    if len(content) > LARGEST:
        raise GrouperError(f"{path} is larger than {LARGEST >> 10} KiB: {YAML}")
    options = yaml_value(text, str(path)) or {}
    if not isinstance(options, dict):
        raise GrouperError(f"{path} holds no options: expected lines like `seed: 1`")
    found = {}
    for option, value in options.items():
        name = str(option).replace("-", "_") if isinstance(option, str) else ""
        if name not in known:
            raise GrouperError(f"{path} has the option {shown(option)}, which `grouper {command}` does not know")
        for one in value if isinstance(value, list) else [value]:
            if not (one is None or isinstance(one, str | bool | int | float)) or is_huge(one):
                raise GrouperError(f"{path} has {option}: {shown(value)}: {EXPECTED}")
        found[name] = ",".join(map(str, value)) if isinstance(value, list) and name not in several else value
    return found


def is_huge(value: object) -> bool:
    """Whether the value is an integer with more digits than Python converts to text."""
    return isinstance(value, int) and abs(value) > 10**100
