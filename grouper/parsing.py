"""Parsing of JSON and YAML files that may come from anywhere."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError
from grouper.names import printable, shortened

LARGEST = 8 * 2**20  # bytes of a configuration
DEEPEST = 100  # nesting depth of lists and objects
DEEPEST_YAML = 20  # nesting depth of lists and mappings in YAML, which is slower to build
MOST = 250_000  # values of a configuration: names of 22,000 classes, twice, and more
LONGEST = 20  # digits of an integer below 2**64, as for seeds


def json_object(text: str, what: str, loads: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """JSON object in a text. what: name of the text in the GrouperError that is raised if there is none."""
    try:
        data = loads(text)
    except (ValueError, RecursionError) as error:
        raise GrouperError(f"{what} is not JSON ({shortened(printable(str(error)), 120)})") from error
    if not isinstance(data, dict):
        raise GrouperError(f"{what} is not JSON (no object in it)")
    return data


def read_object(path: Path, what: str, largest: int = LARGEST, most: int = MOST) -> dict[str, Any]:
    """JSON object in a file of at most `largest` bytes and `most` values. what: name of the file in the GrouperError
    that is raised if there is none, or if it is too large or too deep."""
    content = content_of(path, what, largest)
    if max(map(content.count, (b",", b"[", b"{"))) > most:  # checked before memory is allocated
        raise GrouperError(f"{what} has more than {most:,} values: is it what its name says?")
    data = json_object(content.decode("utf-8", errors="replace"), what)
    check_extent(data, what, most)
    return data


def content_of(path: Path, what: str, largest: int = LARGEST) -> bytes:
    """Bytes of a file of at most `largest` bytes. what: name of the file in the GrouperError that is raised for a
    larger one."""
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise GrouperError(f"{what} is larger than {largest / 2**20:g} MiB: is it what its name says?")
    return content


def check_extent(data: dict[str, Any] | list[Any], what: str, most: int = MOST) -> None:
    """Raise GrouperError if lists and objects are nested too deep, or hold more than `most` values."""
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


def finite(text: str) -> float:
    """Finite number in a text. Raises ValueError for infinity, NaN and other text."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{shortened(text, 40)} stands where a finite number is expected")
    return number


def loads_strictly(text: str, number: Callable[[str], float] = finite) -> Any:
    """JSON as Grouper writes it: unique keys, integers below 2**64. number: reads all other numbers. Raises ValueError
    for anything else."""
    return json.loads(text, object_pairs_hook=_each_once, parse_int=_whole, parse_float=number, parse_constant=number)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(k for k in keys if keys.count(k) > 1))} stands twice")
    return found


def _whole(text: str) -> int:
    number = int(text) if len(text) <= LONGEST + 1 else 2**64
    if abs(number) >= 2**64:
        raise ValueError(f"{shortened(text, 40)} is too large: expected integers below 2**64")
    return number


def yaml_value(text: str, what: str, loader: str = "SafeLoader") -> Any:
    """Value of a YAML text. loader: a loader of PyYAML that builds plain values only. what: name of the text in the
    GrouperError that is raised for invalid or too deeply nested YAML, before anything is built."""
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
    """Value of a file as text for a message: short and on one line, for any value."""
    try:
        return shortened(printable(repr(value)), 60)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists a thousand deep
        return f"of type {type(value).__name__}"
