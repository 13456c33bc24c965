"""Decoding of text files as UTF-8. Other encodings are reported in one sentence that tells how to convert them."""

import codecs
import re
from pathlib import Path
from typing import BinaryIO

from grouper.errors import GrouperError

HEAD = 4096  # bytes in which the encoding is detected
MARKS = {  # byte-order marks; UTF-32 comes first, because its marks begin like those of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise GrouperError(f"cannot read the text {path} ({error.strerror})") from error


def content_of(path: Path) -> str:
    """Content of a whole file. A UTF-8 byte-order mark is skipped; \\r\\n and \\r are read as \\n. Raises
    GrouperError."""
    with opened(path) as file:
        data = file.read()
    begin = text_begin(data[:HEAD], str(path))
    return decoded(data[begin:], begin, str(path))


def text_begin(head: bytes, name: str) -> int:
    """Position after a UTF-8 byte-order mark; 0 if there is none. Raises GrouperError for UTF-16 and UTF-32."""
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
    """Text of a part of a file. data: bytes from position `place` on. Raises GrouperError if they are not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        where = f"{name} is not UTF-8 text: byte 0x{byte:02x} at offset {place + error.start:,}"
        raise GrouperError(f"{where} {_looks(data[max(0, error.start - HEAD) : error.start + HEAD])}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _looks(data: bytes) -> str:
    """Likely kind of bytes that are not UTF-8, and advice on converting them. Control characters do not occur in
    text."""
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", data):
        return "(it looks like binary data): give plain text or JSONL"
    encoding, region = "LATIN1", "Western European"
    if re.search(rb"[\x80-\x9f]", data):
        encoding, region = "CP1252", "Windows, Western European"
    return f"(it looks like {encoding.lower()}, {region}); {_cure(encoding)}"


def _cure(encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW"
