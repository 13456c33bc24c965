"""JSON from files that anybody may have written: one line, soon, whatever is in them."""

import json
import time

import pytest

from grouper.errors import GrouperError
from grouper.parsing import DEEPEST, LARGEST, MOST, read_object, shown

DEEP = '{"a": ' + "[" * DEEPEST + "]" * DEEPEST + "}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[]", "no object in it"),
        ("\x00", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[" * 1_000_000, "more than 250,000 values"),
        ("," * 5_000_000, "more than 250,000 values"),
        ('{"a": [' + "{}," * MOST + "{}]}", "more than 250,000 values"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        (" " * (LARGEST + 1), "larger than 8 MiB"),
        ('{"a": [' + "1," * MOST + "1]}", "more than 250,000 values"),
        (DEEP, "more than 100 lists or objects within one another"),
    ],
    ids=range(11),
)
def test_everything_else_is_refused_within_a_second(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)
    began = time.monotonic()
    with pytest.raises(GrouperError, match=said) as refusal:
        read_object(tmp_path / "config.json", "config.json of it")
    assert str(refusal.value).startswith("config.json of it ") and len(str(refusal.value)) < 300
    assert time.monotonic() - began < 1


def test_an_object_is_read_up_to_the_limits(tmp_path):
    data = {"a": {"b": [1, 2, {"c": None}]}, "ü": "ü"}
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert read_object(tmp_path / "config.json", "it", most=7) == data
    with pytest.raises(GrouperError, match="more than 6 values"):
        read_object(tmp_path / "config.json", "it", most=6)
    (tmp_path / "config.json").write_text(DEEP.replace("[]", ""))
    assert read_object(tmp_path / "config.json", "it")


def test_an_endless_file_is_not_read_to_its_end(tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(GrouperError, match="larger than"):
        read_object(tmp_path / "config.json", "it")


def test_values_are_shown_short_whatever_they_are():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown("a\x1b[2J\n") == r"'a\x1b[2J\n'" and len(shown("x" * 10_000)) < 80
    assert shown(10**5000) == "of type int" and shown(deep) == "of type list"
