"""JSON from files that anybody may have written."""

import json
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError
from grouper.names import printable, shortened

LARGEST = 8 * 2**20  # bytes of a configuration
DEEPEST = 100  # lists and objects within one another
DEEPEST_YAML = 20  # in lists and mappings, which are built more slowly
MOST = 250_000  # values of a configuration: a name for each of 22,000 classes, twice, and room


def json_object(text: str, what: str) -> dict[str, Any]:
    """The object in a text. what: names it in the GrouperError that is raised where there is none."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrouperError(f"{what} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise GrouperError(f"{what} is not JSON (no object in it)")
    return data


def read_object(path: Path, what: str, largest: int = LARGEST, most: int = MOST) -> dict[str, Any]:
    """The object in a file of at most `largest` bytes and `most` values. what: names it in the GrouperError that is
    raised where there is none, or a larger or deeper one."""
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise GrouperError(f"{what} is larger than {largest / 2**20:g} MiB: is it what its name says?")
    data = json_object(content.decode("utf-8", errors="replace"), what)
    waiting: list[tuple[dict | list, int]] = [(data, 1)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        inner = list(value.values()) if isinstance(value, dict) else value
        count += len(inner)
        if depth > DEEPEST or count > most:
            limit = f"{DEEPEST} lists or objects within one another" if depth > DEEPEST else f"{most:,} values"
            raise GrouperError(f"{what} has more than {limit}: is it what its name says?")
        waiting += [(one, depth + 1) for one in inner if isinstance(one, dict | list)]
    return data


def yaml_value(text: str, what: str, loader: str = "SafeLoader") -> Any:
    """The value of a text in YAML. loader: of PyYAML, one that builds plain values only. what: names it in the
    GrouperError that is raised where it is no YAML or too deep: that is known before anything is built."""
    import yaml

    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise GrouperError(f"{what} has more than {DEEPEST_YAML} lists or mappings within one another: refused")
        return yaml.load(text, Loader=getattr(yaml, loader))
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise GrouperError(f"{what} is not YAML of plain values ({type(error).__name__})") from error


def shown(value: object) -> str:
    """A value of a file for a message: short, on one line, whatever it is."""
    try:
        return shortened(printable(repr(value)), 60)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists a thousand deep
        return f"of type {type(value).__name__}"
