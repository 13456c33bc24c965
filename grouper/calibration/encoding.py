"""Text files as bytes: UTF-8, or one sentence that says what they are instead and how to convert them."""

import codecs
import re
from pathlib import Path
from typing import BinaryIO

from grouper.errors import GrouperError

HEAD = 4096  # bytes by which an encoding is told
MARKS = {  # byte-order marks; UTF-32's begin as UTF-16's do, so that they come first
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise GrouperError(f"cannot read the text {path} ({error.strerror})") from error


def content_of(path: Path) -> str:
    """A whole file; a byte-order mark of UTF-8 is skipped, and \\r\\n and \\r are read as \\n. Raises GrouperError."""
    with opened(path) as file:
        data = file.read()
    begin = text_begin(data[:HEAD], str(path))
    return decoded(data[begin:], begin, str(path))


def text_begin(head: bytes, name: str) -> int:
    """The place after a byte-order mark of UTF-8; 0 without one. Raises GrouperError for UTF-16 and UTF-32."""
    if head.startswith(codecs.BOM_UTF8):
        return len(codecs.BOM_UTF8)
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            raise GrouperError(f"{name} is not UTF-8 text: its byte-order mark says {encoding}; {_cure(encoding)}")
    for zeros, letters, encoding in ((head[1::2], head[::2], "UTF-16LE"), (head[::2], head[1::2], "UTF-16BE")):
        if zeros.count(0) > len(zeros) // 2 and letters.count(0) <= len(letters) // 10:
            raise GrouperError(f"{name} is not UTF-8 text: every other byte is 0, as in {encoding}; {_cure(encoding)}")
    return 0


def decoded(data: bytes, place: int, name: str) -> str:
    """data: a part of the file that begins at byte `place`. Raises GrouperError where it is not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        where = f"{name} is not UTF-8 text: byte 0x{byte:02x} at offset {place + error.start:,}"
        raise GrouperError(f"{where} {_looks(data[max(0, error.start - HEAD) : error.start + HEAD])}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _looks(data: bytes) -> str:
    """What bytes that are not UTF-8 look like, and what to do. Control characters occur in no text."""
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", data):
        return "(it looks like binary data): give plain text or JSONL"
    encoding, region = "LATIN1", "Western European"
    if re.search(rb"[\x80-\x9f]", data):
        encoding, region = "CP1252", "Windows, Western European"
    return f"(it looks like {encoding.lower()}, {region}); {_cure(encoding)}"


def _cure(encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW"
