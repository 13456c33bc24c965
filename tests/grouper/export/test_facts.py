"""grouper.json as anybody may have left it."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grouper import GrouperError, HeadLayout
from grouper.export.facts import MARKER, read_facts
from grouper.export.write import already_written
from grouper.uptraining.exported import ExportedModel

KEPT = sorted((Path(__file__).parents[2] / "data").glob("*/*/grouper.json"))
GOOD = json.loads(next(p for p in KEPT if p.parent.name == "ragged").read_text())
CALM = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
FIELDS = (0, 0.5, True, "x", [], {}, [[0]], {"a": {"b": []}}, 10**30, float("inf"), float("nan"), "\ud800")
TEXT = ("base_model", "base_fingerprint", "merge", "method", "fitness", "search", "export", "uptrain")


def written(folder: Path, data: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / MARKER).write_text(data if isinstance(data, str) else json.dumps(data))
    return folder


def refused(folder: Path) -> str:
    """What commands say of it: one line with the file's name."""
    lines = []
    for read in (read_facts, ExportedModel.open):
        with pytest.raises(GrouperError) as error:
            read(folder)
        lines.append(str(error.value))
    assert already_written(folder, HeadLayout.from_data(GOOD["layout"]), GOOD["export"]) is None
    assert lines[0] == lines[1] and "\n" not in lines[0] and len(lines[0]) < 400
    assert lines[0].startswith(f"{folder / MARKER} is damaged (") and lines[0].endswith("): export the model again")
    return lines[0]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_what_older_versions_wrote_is_read_whole(path):
    """What no command reads, too: training hands it on."""
    assert read_facts(path.parent) == json.loads(path.read_text())


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "\x00", "{" * 1000, "," * 300_000, '{"merge": "x", "merge": "y"}']
)
def test_what_is_no_json_of_ours_is_one_line(tmp_path, text):
    refused(written(tmp_path / "x", text))


@pytest.mark.parametrize(
    "field, fine",
    {
        **dict.fromkeys(TEXT, ("x",)), "error": (0, 0.5), "report": ({}, {"a": {"b": []}}), "layout": (),
        "parameters": ({},), "measured": ({},), "refined": (), "uptrained": (), "crc32": ({},),
    }.items(),
    ids=str,
)  # fmt: skip
def test_a_field_of_another_kind_is_one_line(tmp_path, field, fine):
    for value in FIELDS:
        folder = written(tmp_path / "x", {**GOOD, field: value})
        if (value, type(value)) in [(one, type(one)) for one in fine]:
            assert read_facts(folder)[field] == value
        else:
            refused(folder)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"report": {"format": "hf", "deploy": []}}, "report.deploy is []: expected a valid string"),
        ({"refined": {"tokens": 1, "steps": 1}}, "refined.scope is missing"),
        ({"refined": {"tokens": "x", "steps": 1, "scope": "block"}}, "refined.tokens is 'x': expected a valid integer"),
        ({"uptrained": {"method": "distill", "tokens": 1, "steps": 1, "teacher": {}}}, "uptrained.teacher is {}"),
        ({"measured": {"nll": [1.0]}}, "measured.nll"), ({"measured": {"nll": [1.0, "x"]}}, "measured.nll.1 is 'x'"),
        ({"crc32": {"a": "0"}}, "crc32.a is '0': expected a valid integer"),
        ({"layout": {**GOOD["layout"], "layers": []}}, "0 layers"),
        ({"layout": {**GOOD["layout"], "format": 2}}, "this Grouper reads format 1"),
    ],
    ids=str,
)  # fmt: skip
def test_the_line_names_the_field_and_its_value(tmp_path, change, told):
    assert told in refused(written(tmp_path / "x", {**GOOD, **change}))


@CALM
@given(ANYTHING)
def test_any_json_is_read_or_refused(tmp_path, data):
    with suppress(GrouperError):
        read_facts(written(tmp_path / "x", data))


@CALM
@given(st.sampled_from(sorted(GOOD)), ANYTHING)
def test_any_value_of_a_field_is_read_or_refused(tmp_path, field, value):
    with suppress(GrouperError):
        ExportedModel.open(written(tmp_path / "x", {**GOOD, field: value}))
