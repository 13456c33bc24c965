"""Door of files: what is of its type comes in, all else is one line."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grouper import GrouperError
from grouper.parsing import LARGEST, MOST
from grouper.schema import LONGEST_LINE, Row, damage_said, document, fitted, read_rows, text_of

CALM = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = st.sampled_from(
    ["{", "}", "[", "]", ",", ":", '"', "\n", "\r", "\\", "\x00", "\ud800", "null", "true", "1", "-1", "0.1", "1e999",
     "NaN", '"count"', '"inner"', '"name"', "layer", "error", "9" * 30, "\u2028", " ", "\ufeff"]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=30).map("".join)
KEYS = st.text(max_size=4) | st.sampled_from(["count", "inner", "name", "shares"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True)
class Inner:
    name: str
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int
    whole: bool = False
    inner: list[Inner] = field(default_factory=list)


@dataclass(frozen=True)
class Measured(Row):
    layer: int
    error: float
    name: str = ""
    spread: float | None = None


def test_data_becomes_its_type():
    """What is missing gets its default, what nobody knows is passed over."""
    text = '{"count": 3, "inner": [{"name": "a", "shares": [1, 0.5]}], "newer": {"x": 1}}'
    assert fitted(document(text), Outer) == Outer(3, False, [Inner("a", (1.0, 0.5))])
    assert document('{"seed": 18446744073709551615}') == {"seed": 2**64 - 1}


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "not JSON"), ("[1]", "no object in it"), ('{"count": 1', "not JSON"), ("\x00", "not JSON"),
        ("{}", "count is missing"), ('{"count": "3"}', "count is '3': expected a valid integer"),
        ('{"count": 3.0}', "count is 3.0: expected a valid integer"),
        ('{"count": true}', "count is True: expected a valid integer"),
        ('{"count": null}', "count is None: expected a valid integer"),
        ('{"count": 1, "whole": 1}', "whole is 1: expected a valid boolean"),
        ('{"count": 1, "inner": {}}', "inner is {}: expected a valid"),
        ('{"count": 1, "inner": [{}]}', "inner.0.name is missing"),
        ('{"count": 1, "inner": [{"name": "a", "shares": ["x"]}]}', "inner.0.shares.0 is 'x': expected a valid number"),
        ('{"count": 1, "count": 2}', "the key 'count' stands twice"),
        ('{"count": 1, "x": {"a": 0, "a": 0}}', "the key 'a' stands twice"),
        ('{"count": 1, "x": NaN}', "NaN stands where a finite number is expected"),
        ('{"count": 1, "x": -1e999}', "-1e999 stands where a finite number is expected"),
        ('{"count": %s}' % ("9" * 30), "is too large: expected integers below 2"),
        ('{"count": %s}' % ("9" * 10_000), "is too large: expected integers below 2"),
        ('{"count": 1, "inner": [{"name": "\\ud800"}]}', "JSON"),
    ],
)  # fmt: skip
def test_all_else_is_one_line(text, told):
    with pytest.raises(GrouperError) as refused:
        fitted(document(text), Outer)
    assert told in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "," * 5_000_000, '{"count": [' + "1," * 4_000_000 + "1]}", "[" * 1_000_000, '{"a":' * 1_000_000,
        '{"count":' + "[" * 900 + "]" * 900 + "}", '{"count": 1, "inner": [' + "1," * (MOST - 10) + "1]}",
        "9" * LARGEST, '"' * LARGEST, '{"count": "' + "x" * LARGEST + '"}',
    ],
    ids=["commas", "values", "lists", "objects", "deep", "wrong values", "digits", "quotes", "long"],
)  # fmt: skip
def test_what_is_huge_is_refused_before_it_takes_time(tmp_path, text):
    fitted({"count": 1}, Outer)  # what is imported once
    path = tmp_path / "huge.json"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(GrouperError) as refused, damage_said(path, "delete it"):
        fitted(document(text_of(path)), Outer)
    assert time.process_time() - began < 1 and len(str(refused.value)) < 300
    assert str(refused.value).startswith(f"{path} is damaged (") and str(refused.value).endswith("): delete it")


def test_rows_become_their_type(tmp_path):
    """An empty cell is a field that is missing, columns stand in any order, empty lines are none."""
    path = tmp_path / "a.csv"
    path.write_text('error,layer,name,more\n0.1,1,"a,b\nc",x\n\n1e-30,2,,\n')
    assert read_rows(path, Measured) == [Measured(1, 0.1, "a,b\nc"), Measured(2, 1e-30)]


@pytest.mark.parametrize(
    "text, told",
    [
        ("layer,error\n1\n", "row 1 has 1 cells: expected 2"), ("layer,error\n1,2,3\n", "row 1 has 3 cells"),
        ("layer,error\n1,\n", "row 1: error is missing"), ("layer\n1\n", "row 1: error is missing"),
        ("layer,error\n1,2\nx,2\n", "row 2: layer is 'x': expected a valid integer"),
        ("layer,error\n1.5,2\n", "layer is '1.5': expected a valid integer"),
        ("layer,error\n1,nan\n", "error is 'nan': expected a finite number"),
        ("layer,error,spread\n1,1,inf\n", "spread is 'inf': expected a finite number"),
        ("layer,error\n1,1e999\n", "expected a finite number"),
        ("layer,error\n%s,1\n" % ("9" * 30), "expected an integer below 2"),
        ("layer,layer,error\n1,1,1\n", "two of one name"), ('layer,error\n1,"2\n', "no CSV"),
        ("layer,error\n1,2\x00\n", "expected a valid number"),
        ('layer,error,name\n1,2,"%s"\n' % ("x" * 200_000), "no CSV: field larger than field limit"),
        ("," * 5_000_000, "characters in one"), ("layer,error\n" + "1,2\n" * 300_000, "more than 200,000 rows"),
        ("," * (LONGEST_LINE - 1), "columns"),
    ],
)  # fmt: skip
def test_rows_of_another_kind_are_one_line(tmp_path, text, told):
    path = tmp_path / "a.csv"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(GrouperError) as refused:
        read_rows(path, Measured)
    assert told in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 300
    assert time.process_time() - began < 1


def test_bytes_that_are_no_text_and_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"layer,error\n1,\xff\n")
    with pytest.raises(GrouperError, match="it is not UTF-8 at byte 14"):
        read_rows(tmp_path / "a.csv", Measured)
    with (
        pytest.raises(GrouperError, match=r"cannot be read \(Is a directory\): do this"),
        damage_said(tmp_path, "do this"),
    ):
        text_of(tmp_path)


@CALM
@given(TEXTS)
def test_any_text_is_of_its_type_or_one_line(text):
    try:
        found = fitted(document(text), Outer)
    except GrouperError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert type(found.count) is int and all(type(one.name) is str for one in found.inner)


@CALM
@given(ANYTHING)
def test_any_json_is_of_its_type_or_one_line(data):
    with suppress(GrouperError):
        found = fitted(document(json.dumps(data)), Outer)
        assert type(found.count) is int and type(found.whole) is bool


@CALM
@given(st.binary(max_size=60) | TEXTS.map(lambda text: f"layer,error\n{text}".encode(errors="surrogatepass")))
def test_any_bytes_are_rows_or_one_line(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    try:
        found = read_rows(tmp_path / "a.csv", Measured)
    except GrouperError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert all(type(row.layer) is int and abs(row.error) < float("inf") for row in found)


def test_what_a_file_says_of_itself_is_one_line_without_control_characters(tmp_path):
    with pytest.raises(GrouperError) as refused, damage_said(tmp_path / "a", "delete it"):
        raise ValueError("could not convert\n 'a\x1b[2J" + "x" * 1000)
    assert str(refused.value).startswith(f"{tmp_path / 'a'} is damaged (could not convert 'a\\x1b[2Jxxx")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400 + len(str(tmp_path))
