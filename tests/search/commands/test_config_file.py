"""The YAML that --config names."""

import time

import pytest

from grouper.errors import GrouperError
from search.commands.config_file import LARGEST, read_options

KNOWN, SEVERAL = ("seed", "method", "set", "json", "kl", "text"), ("set",)


def read(path, content: str | bytes) -> dict:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_options(path, "search", KNOWN, SEVERAL)


def test_options_by_their_parameters(tmp_path):
    content = "seed: 3\nmethod: [exact, ward]\nset: [a.b=1, c.d=2]\njson: true\nkl: 0.5\ntext:\n"
    assert read(tmp_path / "o.yaml", content) == {
        "seed": 3, "method": "exact,ward", "set": ["a.b=1", "c.d=2"], "json": True, "kl": 0.5, "text": None,
    }  # fmt: skip
    assert read(tmp_path / "o.yaml", "") == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("".join(" " * i + "a:\n" for i in range(300)), "more than 20 lists"),
        ("[" * 50_000, "more than 20 lists"),
        ("{" * 5000, "more than 20 lists"),
        ("a: &a [*a]", "does not know"),
        ("seed: &a [*a]", "has seed"),
        ("seed: [[1]]", r"has seed: \[\[1\]\]"),
        ("seed: {}", r"has seed: \{\}: expected a word, a number"),
        ("kl: !!set {a, b}", "has kl"),
        ("set: 2026-11-28T10:00:00Z", "has set: datetime"),
        ("seed: " + "9" * 5000, "not YAML of plain values"),
        ("seed: " + "9" * 4000, "has seed: 999"),
        ("seed: " + ":".join(["59"] * 9000), "has seed: of type int"),
        ("seed: !!binary aGVsbG8=", "has seed: b'hello'"),
        ("!!python/object/apply:os.system ['touch HACKED']", "not YAML of plain values"),
        ("- seed", "holds no options"),
        ("gravity: 9.81", "has the option 'gravity', which `grouper search` does not know"),
        ("? [1, 2]\n: 3", "not YAML"),
        ("1: 2", "has the option 1, which"),
        (b"\xff\xfe", "cannot read"),
        (b"\x00", "not YAML"),
        ("#" * (LARGEST + 1), "larger than 64 KiB"),
    ],
    ids=range(21),
)
def test_anything_else_is_one_line_within_a_second(tmp_path, content, said):
    began = time.monotonic()
    with pytest.raises(GrouperError, match=said) as refusal:
        read(tmp_path / "o.yaml", content)
    assert len(str(refusal.value)) < 400 and time.monotonic() - began < 1


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(GrouperError, match=r"cannot read .*FileNotFoundError"):
        read_options(tmp_path / "none.yaml", "search", KNOWN, SEVERAL)
