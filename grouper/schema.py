"""Validation of files that Grouper writes and reads again. Each file is parsed into a type before it is used. An
invalid one is refused with a line that names the file, the field, its value and the expected value.

A type is a dataclass whose annotations are the schema. Values must have exactly these types; nothing is converted.
Unknown fields are ignored and missing ones get their default, so that files of older versions can be read.
"""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from grouper.errors import GrouperError
from grouper.names import printable, shortened
from grouper.parsing import MOST, check_extent, content_of, json_object, loads_strictly, shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
LARGEST_TABLE = 64 * 2**20  # bytes of a CSV
LONGEST_LINE = 2**20  # characters
MOST_ROWS, MOST_COLUMNS = 200_000, 2_000
SEVERAL = 10_000  # wrong values; beyond, only their number is given, because listing them takes a second


@dataclass(frozen=True)
class Row:
    """Base of all table rows: numbers are finite, and integers below 2**62."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012

    def __post_init__(self) -> None:
        if large := [n for n, value in vars(self).items() if isinstance(value, int) and abs(value) >= 2**62]:
            raise GrouperError(f"{large[0]} is {shown(getattr(self, large[0]))}: expected an integer below 2**62")


def document(text: str, finite: bool = True) -> dict[str, Any]:
    """JSON object in a text that Grouper wrote. finite: refuse infinity and NaN. Raises GrouperError if there is no
    object, or if it is larger or deeper than any that Grouper writes."""
    if max(text.count(","), text.count("[")) > MOST:  # checked before memory is allocated
        raise GrouperError(f"it has more than {MOST:,} values: is it what its name says?")
    data = json_object(text, "it", loads_strictly if finite else partial(loads_strictly, number=float))
    check_extent(data, "it")
    return data


def fitted(data: object, kind: type[T]) -> T:
    """Value of this type from JSON data. Raises GrouperError if it does not fit."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(data), strict=True)  # type: ignore[arg-type]
    except (ValidationError, RecursionError) as error:
        raise GrouperError(_told(error)) from error


def fitted_texts(texts: dict[str, str], kind: type[T]) -> T:
    """Value of this type from values written as text. Raises GrouperError if it does not fit."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_strings(texts)  # type: ignore[arg-type]
    except ValidationError as error:
        raise GrouperError(_told(error)) from error


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Rows of a CSV file with a header. An empty cell is a missing field. Raises GrouperError."""
    return rows_in(text_of(path, LARGEST_TABLE), kind)


def rows_in(text: str, kind: type[T]) -> list[T]:
    """Rows of a CSV text with a header."""
    return list(_rows(text, kind))


@contextmanager
def damage_said(path: Path, cure: str) -> Iterator[None]:
    """Add to errors in the block the file's name in front, and advice at the end."""
    try:
        yield
    except (GrouperError, ValueError) as error:
        why = shortened(printable(" ".join(str(error).split())), 300)
        raise GrouperError(f"{path} is damaged ({why}): {cure}") from error
    except OSError as error:
        raise GrouperError(f"{path} cannot be read ({error.strerror or error}): {cure}") from error


def text_of(path: Path, *limit: int) -> str:
    """Text of a file. limit: largest size in bytes. Raises GrouperError if it is not UTF-8."""
    try:
        return content_of(path, "it", *limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise GrouperError(f"it is not UTF-8 at byte {error.start}") from error


def _rows(text: str, kind: type[T]) -> Iterator[T]:
    lines = list(io.StringIO(text, newline=""))
    if len(lines) > MOST_ROWS or any(len(line) > LONGEST_LINE for line in lines):
        raise GrouperError(f"it has more than {MOST_ROWS:,} rows, or {LONGEST_LINE:,} characters in one")
    table = csv.reader(lines, strict=True)
    try:
        header = next(table, [])
        if len(header) > MOST_COLUMNS or len(set(header)) < len(header):
            raise GrouperError(f"it has more than {MOST_COLUMNS:,} columns, or two of one name")
        for number, cells in enumerate(filter(None, table), 1):
            yield _row(number, header, cells, kind)
    except csv.Error as error:
        raise GrouperError(f"no CSV: {error}") from error


def _row(number: int, header: list[str], cells: list[str], kind: type[T]) -> T:
    if len(cells) != len(header):
        raise GrouperError(f"row {number} has {len(cells)} cells: expected {len(header)}, one for each column")
    try:
        return fitted_texts({name: cell for name, cell in zip(header, cells) if cell != ""}, kind)
    except GrouperError as error:
        raise GrouperError(f"row {number}: {error}") from error


@cache
def _adapter(kind: Any) -> "TypeAdapter":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _told(error: "ValidationError | RecursionError") -> str:
    """Message about the first wrong value."""
    if isinstance(error, RecursionError):
        return "lists or objects lie too deep within one another"
    if error.error_count() > SEVERAL:
        return f"{error.error_count():,} of its values are of another kind than expected"
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"])) or "it"
    if first["type"].startswith("missing"):
        return f"{place} is missing"
    expected = first["msg"].replace("Input should be", "expected").replace("Field required", "expected a value")
    return f"{place} is {shown(first['input'])}: {expected}"
