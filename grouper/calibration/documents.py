"""Documents of a text, read piece by piece from any position, so that a long text is never held in memory whole.

A position is a number of bytes from the start of the text. It is moved forward to the next gap between words (between
characters if no whitespace is near). The same position always moves to the same gap, so consecutive pieces fit
together.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from grouper.calibration.encoding import HEAD, decoded, opened, text_begin
from grouper.errors import GrouperError

Piece = tuple[str, bool]  # text, and whether a document ends with it
LOOK = 4096  # bytes searched for a gap between words
BLOCK = 2**16  # bytes read at a time to find the start of a line
GAP, GAP_IN_BYTES = re.compile(r"(?<=\S)\s"), re.compile(rb"(?<=\S)\s")  # whitespace belongs to the word after it


class PlainText:
    """A single document. open_text: opens its bytes. size: number of bytes."""

    def __init__(self, name: str, open_text: Callable[[], BinaryIO]):
        self.name, self._open = name, open_text
        with open_text() as file:
            self.begin = text_begin(file.read(HEAD), name)
            self.size = file.seek(0, 2)

    def pieces(self, start: int, stop: int, most: int | None = None) -> Iterator[Piece]:
        """Pieces of about `most` bytes between two positions; one piece if `most` is None."""
        with self._open() as file:
            place, stop = self._gap(file, start), self._gap(file, stop)
            while place < stop:
                end = stop if most is None else min(stop, self._gap(file, place + most))
                file.seek(place)
                yield decoded(file.read(end - place), place, self.name), end == self.size
                place = end

    def _gap(self, file: BinaryIO, place: int) -> int:
        if place <= self.begin or place >= self.size:
            return self.begin if place <= self.begin else self.size
        file.seek(place - 1)
        block = file.read(LOOK)
        if found := GAP_IN_BYTES.search(block):
            return place - 1 + found.start()
        return place + next((i for i, byte in enumerate(block[1:5]) if byte & 0xC0 != 0x80), 0)


class Rows(ABC):
    """Documents stored as rows, one each. Subclasses locate the rows and name them in messages."""

    name: str
    size: int

    def __init__(self, tokenizer: Callable[[], Any]):
        """Prepare to read rows. tokenizer: loads the tokenizer whose template formats chats."""
        self._tokenizer = tokenizer
        self._last: tuple[int, int, str] = (0, 0, "")  # a long row is parsed once for all its pieces

    @abstractmethod
    def row(self, place: int) -> tuple[int, int, Any] | None:
        """Row at this position or the next one, as (begin, end, content); None after the last row."""

    @abstractmethod
    def called(self, begin: int) -> str:
        """Name, for messages, of the row that begins at this position."""

    def pieces(self, start: int, stop: int, most: int | None = None) -> Iterator[Piece]:
        """Pieces as for plain text. The text of a row is assumed to be spread evenly over its bytes."""
        place = start
        while place < stop:
            if not self._last[0] <= place < self._last[1]:
                if (found := self.row(place)) is None:
                    return
                self._last = (*found[:2], self._document(*found))
            begin, end, document = self._last
            if begin >= stop:
                return
            first, last = (_gap(document, begin, end, at) for at in (place, stop))
            while True:
                cut = last if most is None else min(last, _gap(document, 0, len(document), first + most))
                if cut > first or not document:
                    yield document[first:cut], cut == len(document)
                if cut >= last:
                    break
                first = cut
            place = end

    def chats(self, spans: list[tuple[int, int]] | None = None) -> list[list[dict]] | None:
        """Conversations, if all rows are chats; else None. With `spans`, only those that lie entirely within one
        span."""
        found: list[list[dict]] = []
        end = 0
        while row := self.row(end):
            begin, end, content = row
            if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
                return None
            chat = self._said(begin, partial(_chat, content))
            if spans is None or any(first <= begin and end <= last for first, last in spans):
                found.append(chat)
        return found if end else None

    def _document(self, begin: int, _end: int, row: Any) -> str:
        if not isinstance(row, dict):
            raise GrouperError(f"{self.called(begin)} is not an object: expected one with a `text` or chat `messages`")
        if row.get("messages") is None:
            if not isinstance(row.get("text"), str):
                raise GrouperError(f"{self.called(begin)} has neither a `text` nor chat `messages` (both are absent, "
                                   "null or of another type): remove the row or give it one")  # fmt: skip
            return row["text"]
        chat, tokenizer = self._said(begin, lambda: _chat(row)), self._tokenizer()
        check_template(tokenizer, self.name)
        with_template = lambda: tokenizer.apply_chat_template(chat, tokenize=False)  # noqa: E731
        return self._said(begin, with_template)

    def _said(self, begin: int, read: Callable[[], Any]) -> Any:
        """Result of `read`. An error names the row that it occurred in."""
        try:
            return read()
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise GrouperError(f"{self.called(begin)} is not a conversation: {error}") from error


class JsonLines(Rows):
    """Rows stored one per line."""

    def __init__(self, path: Path, tokenizer: Callable[[], Any]):
        super().__init__(tokenizer)
        self.name, self._path = str(path), path
        with opened(path) as file:
            head = file.read(HEAD)
            self._begin, self.size = text_begin(head, self.name), file.seek(0, 2)
        if head[self._begin :].lstrip().startswith(b"["):
            cure = f"jq -c '.[]' {path.name} > {path.stem}.jsonl"
            raise GrouperError(f"{path} holds one JSON list, not an object a line: convert it ({cure})")

    def row(self, place: int) -> tuple[int, int, Any] | None:
        if place >= self.size:
            return None
        with opened(self._path) as file:
            begin = self._line_begin(file, place)
            file.seek(begin)
            while line := file.readline():
                end = begin + len(line)
                if not line.isspace():
                    text = decoded(line, begin, self.name)
                    del line  # it may be long
                    try:
                        return begin, end, json.loads(text)
                    except (ValueError, RecursionError) as error:
                        expected = "expected an object a line, with a `text` or chat `messages`"
                        raise GrouperError(f"{self.called(begin)} is not JSON ({error}): {expected}") from error
                begin = end
        return None

    def called(self, begin: int) -> str:
        lines, left = 1, begin
        with opened(self._path) as file:
            while left > 0 and (block := file.read(min(BLOCK, left))):
                lines, left = lines + block.count(b"\n"), left - len(block)
        return f"line {lines} of {self.name}"

    def _line_begin(self, file: BinaryIO, place: int) -> int:
        file.seek(max(self._begin, place - 1))
        if file.read(1) == b"\n":  # rows are usually read in order
            return place
        end = place
        while end > self._begin:
            begin = max(self._begin, end - BLOCK)
            file.seek(begin)
            if (found := file.read(end - begin).rfind(b"\n")) >= 0:
                return begin + found + 1
            end = begin
        return self._begin


class DatasetRows(Rows):
    """Rows of a dataset, assumed to be of equal length. size: total bytes, or the number of rows if the dataset does
    not state its bytes."""

    def __init__(self, name: str, rows: Any, tokenizer: Callable[[], Any]):
        super().__init__(tokenizer)
        self.name, self._rows = name, rows
        self._length = max(1, getattr(getattr(rows, "data", None), "nbytes", 0) // max(1, len(rows)))
        self.size = self._length * len(rows)

    def row(self, place: int) -> tuple[int, int, Any] | None:
        number = place // self._length
        if number >= len(self._rows):
            return None
        return number * self._length, (number + 1) * self._length, self._rows[number]

    def called(self, begin: int) -> str:
        return f"row {begin // self._length} of {self.name}"


def check_template(tokenizer: Any, name: str) -> None:
    """Raise GrouperError if the tokenizer cannot format the chats of the text `name`."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise GrouperError(
            f"{name} has chats (`messages`), and the model's tokenizer has no chat template to write them with: give "
            "rows with a `text`, or put the template into the model's folder as chat_template.jinja"
        )


def _chat(row: dict) -> list[dict]:
    chat = row["messages"]
    if not isinstance(chat, list) or not all(isinstance(message, dict) for message in chat):
        raise ValueError("`messages` is not a list of objects, each with a `role` and its `content`")
    if not chat:
        raise ValueError("`messages` is empty; remove the row")
    return chat


def _gap(text: str, begin: int, end: int, place: int) -> int:
    """Position in `text` of the gap nearest after byte `place` of the source; `text` takes bytes `begin` to `end`."""
    if place <= begin or place >= end:
        return 0 if place <= begin else len(text)
    at = len(text) * (place - begin) // (end - begin)
    found = GAP.search(text, at, at + LOOK)
    return found.start() if found else at
