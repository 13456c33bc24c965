"""JSON from files that anybody may have written."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError
from grouper.names import printable, shortened

LARGEST = 8 * 2**20  # bytes of a configuration
DEEPEST = 100  # lists and objects within one another
DEEPEST_YAML = 20  # in lists and mappings, which are built more slowly
MOST = 250_000  # values of a configuration: a name for each of 22,000 classes, twice, and room
LONGEST = 20  # digits of an integer below 2**64, as seeds are


def json_object(text: str, what: str, loads: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """The object in a text. what: names it in the GrouperError that is raised where there is none."""
    try:
        data = loads(text)
    except (ValueError, RecursionError) as error:
        raise GrouperError(f"{what} is not JSON ({shortened(printable(str(error)), 120)})") from error
    if not isinstance(data, dict):
        raise GrouperError(f"{what} is not JSON (no object in it)")
    return data


def read_object(path: Path, what: str, largest: int = LARGEST, most: int = MOST) -> dict[str, Any]:
    """The object in a file of at most `largest` bytes and `most` values. what: names it in the GrouperError that is
    raised where there is none, or a larger or deeper one."""
    content = content_of(path, what, largest)
    if max(map(content.count, (b",", b"[", b"{"))) > most:  # before room is made for them
        raise GrouperError(f"{what} has more than {most:,} values: is it what its name says?")
    data = json_object(content.decode("utf-8", errors="replace"), what)
    check_extent(data, what, most)
    return data


def content_of(path: Path, what: str, largest: int = LARGEST) -> bytes:
    """A file's bytes, at most `largest`. Raises GrouperError, with the name `what`, for a larger one."""
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise GrouperError(f"{what} is larger than {largest / 2**20:g} MiB: is it what its name says?")
    return content


def check_extent(data: dict[str, Any] | list[Any], what: str, most: int = MOST) -> None:
    """Raise GrouperError where lists and objects lie too deep within one another, or hold more than `most` values."""
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
    """Raises ValueError for a number that is infinite or none."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{shortened(text, 40)} stands where a finite number is expected")
    return number


def loads_strictly(text: str, number: Callable[[str], float] = finite) -> Any:
    """JSON as we write it: each key once, integers below 2**64. number: reads the others. Raises ValueError for all
    else."""
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
