"""Text given in Python: a file name, documents, pairs or rows of a dataset."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from grouper.calibration.source import PAIR, is_file_name
from grouper.errors import GrouperError

Given = str | Path | Iterable[str] | Iterable[tuple[str, str]] | Iterable[Mapping[str, Any]]
COLUMNS = (("text",), ("messages",), PAIR)  # of rows; the first ones present are read
STREAMED = 2**26  # bytes read of text without a length, which may be endless
NAME = 255  # most characters in a file name
EXPECTED = "text is neither a file nor documents: give a path, or a list of strings, of pairs, or of dicts with `text`"


def named_text(text: Given, file: Path) -> str:
    """Name that TextSource accepts: the given one, or that of `file`, to which documents are written as JSONL. Raises
    GrouperError if the text is neither."""
    if isinstance(text, str | Path):
        return _name(str(text))
    if isinstance(text, Mapping):
        raise GrouperError(f"text is a {type(text).__name__}: give one of its splits, like text['train']")
    if not isinstance(text, Iterable):
        raise GrouperError(EXPECTED)
    with open(file, "w", encoding="utf-8") as out:
        for line in _lines(text):
            out.write(line)
    return str(file)


def _name(text: str) -> str:
    """File name, unchanged. If it is a document given by mistake, the error does not repeat it."""
    if (len(text) > NAME or "\n" in text) and not _is_file(text):
        raise GrouperError(f"text is a string of {len(text):,} characters and no file: give a path, or [text]")
    return text


def _is_file(text: str) -> bool:
    try:
        return not is_file_name(text) or Path(text).expanduser().is_file()
    except OSError:  # too long for the system
        return False


def _lines(rows: Iterable[Any]) -> Iterator[str]:
    """Lines of JSONL for documents, pairs or rows, all of the same kind."""
    written, columns = 0, None
    for row in rows:
        found = _columns(row)
        if columns not in (None, tuple(found)):
            raise GrouperError(f"text has rows with `{columns[0]}` and others without: give rows of one kind")
        columns = tuple(found)
        line = json.dumps(found) + "\n"
        written += len(line)
        yield line
        if written > STREAMED and not isinstance(rows, Sized):
            return
    if columns is None:
        raise GrouperError(EXPECTED)


def _columns(row: Any) -> dict[str, Any]:
    """Columns of a row that are read. Raises GrouperError if there are none."""
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, tuple) and len(row) == 2:
        row = dict(zip(PAIR, row))
    for names in COLUMNS if isinstance(row, Mapping) else ():
        found = {name: row[name] for name in names if name in row}
        if len(found) == len(names) and all(isinstance(value, str | list) for value in found.values()):
            return found
    raise GrouperError(EXPECTED)
