"""What is not UTF-8, and what UTF-8 may begin with."""

import json

import pytest

from grouper import GrouperError
from grouper.calibration.source import TextSource

WORDS = "Déjà vu — “naïve” café. " * 30


def read(path) -> list[str]:
    documents = TextSource(str(path)).documents(lambda: None)
    return [text for text, _ in documents.pieces(0, documents.size)]


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "its byte-order mark says UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
        ("utf-16-le", "every other byte is 0, as in UTF-16LE; convert it: iconv -f UTF-16LE"),
        ("utf-16-be", "every other byte is 0, as in UTF-16BE"),
        ("utf-32", "its byte-order mark says UTF-32"),
        ("latin-1", r"byte 0xe9 at offset {} \(it looks like latin1, Western European\); convert it: iconv -f LATIN1"),
        ("cp1252", r"byte 0xe9 at offset {} \(it looks like cp1252, Windows"),
    ],
)
def test_other_encodings_are_named_with_the_cure(tmp_path, name, encoding, said):
    words = "naive" if encoding.startswith("utf") else "Déjà vu “naïve”" if encoding == "cp1252" else "Déjà vu naïve"
    text = json.dumps({"text": words}, ensure_ascii=False) if name == "rows.jsonl" else words
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(GrouperError, match=f"{name} is not UTF-8 text: {said.format(text.find('é'))}"):
        read(tmp_path / name)


def test_binary_data_has_no_cure(tmp_path):
    (tmp_path / "data").write_bytes(b"GGUF\x03\x00\xff\xfe\x00\x01")
    with pytest.raises(GrouperError, match=r"byte 0xff at offset 6 \(it looks like binary data\): give plain text"):
        read(tmp_path / "data")


def test_pairs_that_are_not_utf_8_are_told_with_their_place(tmp_path):
    """A mark of 3 bytes and 4 more stand before the byte."""
    (tmp_path / "pairs.tsv").write_bytes(b"\xef\xbb\xbf" + b"a\tb\n\xe9\tc\n")
    with pytest.raises(
        GrouperError, match=r"pairs\.tsv is not UTF-8 text: byte 0xe9 at offset 7 \(it looks like latin1"
    ):
        TextSource(str(tmp_path / "pairs.tsv")).pairs()
    (tmp_path / "pairs.tsv").write_bytes("a\tb\n".encode("utf-16"))
    with pytest.raises(GrouperError, match=r"pairs\.tsv is not UTF-8 text: its byte-order mark says UTF-16"):
        TextSource(str(tmp_path / "pairs.tsv")).pairs()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_of_utf_8_is_skipped(tmp_path, mark):
    (tmp_path / "a.txt").write_bytes(mark + WORDS.encode())
    (tmp_path / "a.jsonl").write_bytes(mark + json.dumps({"text": WORDS}, ensure_ascii=False).encode())
    (tmp_path / "pairs.tsv").write_bytes(mark + b"a\tb\r\nc\td\r\n")
    assert read(tmp_path / "a.txt") == read(tmp_path / "a.jsonl") == [WORDS]
    assert TextSource(str(tmp_path / "pairs.tsv")).pairs() == [("a", "b"), ("c", "d")]


def test_ends_of_lines_are_read_alike(tmp_path):
    rows = [json.dumps({"text": f"row {i}"}) for i in range(3)]
    for name, end in (("unix", b"\n"), ("windows", b"\r\n"), ("old", b"\r")):
        (tmp_path / f"{name}.txt").write_bytes(b"a b" + end + end + b"c" + end)
        assert read(tmp_path / f"{name}.txt") == ["a b\n\nc\n"]
    (tmp_path / "windows.jsonl").write_bytes("\r\n".join(rows).encode())
    assert read(tmp_path / "windows.jsonl") == ["row 0", "row 1", "row 2"]
