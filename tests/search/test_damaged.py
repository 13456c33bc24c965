"""Files of a run as anybody may have left them: read, or refused as a GrouperError."""

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grouper import GrouperError, HeadLayout
from search import RunFolder, SearchOptions, search
from search.runs.pareto import ParetoFront

CALM = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
GOOD = json.loads(HeadLayout.from_labels([[0, 0, 1, 1]] * 2, 4, 8).to_json())


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    search(models("llama"), folder, SearchOptions(fitness="weight", generations=2, population=8))
    return RunFolder(folder)


@CALM
@given(ANYTHING)
def test_any_json_is_a_layout_or_none(data):
    with suppress(GrouperError):
        HeadLayout.from_json(json.dumps(data))


@CALM
@given(st.sampled_from(sorted(GOOD)), ANYTHING)
def test_a_layout_with_one_field_changed_is_whole_or_none(field, value):
    with suppress(GrouperError):
        layout = HeadLayout.from_json(json.dumps({**GOOD, field: value}))
        assert HeadLayout.from_json(layout.to_json()) == layout and 0 < layout.kv_ratio <= 1


@CALM
@given(st.data())
def test_any_damage_to_a_front_is_read_or_refused(run, tmp_path, data):
    """A stretch of it replaced, by anything or by nothing."""
    text = (run.path / "pareto.csv").read_text()
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 200)))
    instead = data.draw(st.sampled_from(["", "nan", "-1", ",", "\n", '"', "\x00", "1e999"]) | st.text(max_size=5))
    path = tmp_path / "pareto.csv"
    path.write_bytes((text[:begin] + instead + text[end:]).encode(errors="replace"))
    with suppress(GrouperError):
        front = ParetoFront.read(path)
        assert front.table["error"].notna().all() and front.table["layout"].dtype.kind == "i"


@CALM
@given(st.data())
def test_any_damage_to_a_layers_file_is_read_or_refused(run, tmp_path, data):
    text = run.layer_path(0).read_text()
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 200)))
    instead = data.draw(st.sampled_from(["", "nan", "-1", "|", "\n", '"', "[[", "9" * 30]) | st.text(max_size=5))
    (tmp_path / "layers").mkdir(exist_ok=True)
    RunFolder(tmp_path).layer_path(0).write_bytes((text[:begin] + instead + text[end:]).encode(errors="replace"))
    with suppress(GrouperError):
        RunFolder(tmp_path).read_layer(0, 1)
