"""Files of a run as anybody may have left them: read, or refused as a GrouperError."""

import csv
import io
import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grouper import GrouperError, HeadLayout, outputs
from search import RunFolder, SearchOptions, search
from search.export_run import export_from_run
from search.report.facts import facts_of
from search.runs.pareto import ParetoFront
from search.runs.picking import Selection

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
        RunFolder(tmp_path).read_layer(0, 4, 4)


JSON = ("", "[]", "null", "\x00", '{"a": 1', "{}", "[" * 1000, '{"a":' * 1000, "," * 300_000, '{"seed": NaN}')
FIELDS = (None, [], {}, [[0]], "\ud800", -1, 0.5, True, "x", 10**30, float("inf"), float("nan"), {"a": {"b": []}})
CELLS = ("", "x", "nan", "inf", "1e999", "-1", "9" * 30, "[[0]]", "0 0|1", "\x00", "x" * 200_000)


def change(path, field, value):
    """One field of a file of JSON replaced."""
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))


def change_cell(path, column, value, row=2):
    """One cell of a CSV replaced."""
    table = list(csv.reader(io.StringIO(path.read_text())))
    table[row][table[0].index(column)] = value
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    path.write_text(text.getvalue())


def refused(path, read) -> str:
    """What a reader says of a damaged file: one line with its name."""
    with pytest.raises(GrouperError) as error:
        read()
    line = str(error.value)
    assert line.startswith(f"{path} ") and "\n" not in line and len(line) < 600
    return line


@pytest.fixture
def copy(run, tmp_path):
    return RunFolder(shutil.copytree(run.path, tmp_path / "copy"))


@pytest.mark.parametrize("text", JSON, ids=lambda text: text[:9])
def test_what_is_no_json_of_ours_is_one_line(copy, text):
    for path, read in (
        (copy.path / "run.json", lambda: copy.settings), (copy.layout_path(1), lambda: copy.layout(1)),
    ):  # fmt: skip
        path.write_text(text)
        assert " is damaged (" in refused(path, read)


@pytest.mark.parametrize(
    "field, fine",
    {
        "method": ([],), "fitness": ("x",), "stage2": (), "paper": (None,), "kv_heads_multiple_of": (-1,),
        "kv_dtype": (), "population": (), "generations": (), "seed": (), "text": (None, "x"), "dataset": (None, "x"),
        "tokens": (), "window": (), "acceptance": (), "set": ([],), "sensitivity": (True,), "images": (None, "x"),
        "blocks": (), "model": ("x",), "revision": (None, "x"), "fingerprint": ("x",), "set_aside": (True,),
        "text_digest": (None, "x"), "versions": ({},), "jobs": (-1,), "device": ("x",), "command": (None, "x"),
        "timings": ({},),
    }.items(),
    ids=str,
)  # fmt: skip
def test_a_field_of_run_json_of_another_kind_is_one_line(copy, field, fine):
    path = copy.path / "run.json"
    (copy.path / "digests" / "run.json").unlink()
    assert field in json.loads(path.read_text())
    for value in (value for value in FIELDS if (value, type(value)) not in [(one, type(one)) for one in fine]):
        change(path, field, value)
        refused(path, lambda: copy.settings)
    for value in fine:
        change(path, field, value)
        assert copy.settings


@pytest.mark.parametrize("field", ["format", "query_heads", "original_kv_heads", "head_dim", "layers"])
def test_a_field_of_a_layout_of_another_kind_is_one_line(copy, field):
    path = copy.layout_path(1)
    text = path.read_text()
    for value in FIELDS:
        path.write_text(text)
        change(path, field, value)
        assert "run the same search again" in refused(path, lambda: copy.layout(1))


@pytest.mark.parametrize(
    "layer, told",
    [
        ({}, "expected kv, or k and v"), ({"k": {"readers": [[0]], "sources": [[0]]}}, "expected kv, or k and v"),
        ({"kv": {"readers": [[0, 0]], "sources": [[0]]}}, "exactly once"), ({"kv": [[0]]}, "layers.0.kv is"),
        ({"kv": {"readers": [[0, 1]], "sources": [[0, 1]]}}, "groups 2 query heads"),
        ({"kv": {"readers": [list(range(8))], "sources": [[0, 99]]}}, "beyond the model's"),
        ({"kv": {"readers": [list(range(8))], "sources": [[-1]]}}, "beyond the model's"),
        ({"kv": {"readers": [list(range(8))], "sources": [[]]}}, "without readers or without sources"),
        ({"kv": {"readers": [["0"]], "sources": [[0]]}}, "layers.0.kv.readers.0.0 is '0': expected a valid integer"),
    ],
    ids=str,
)  # fmt: skip
def test_a_layer_of_a_layout_that_groups_no_heads_is_one_line(copy, layer, told):
    change(copy.layout_path(1), "layers", [layer])
    assert told in refused(copy.layout_path(1), lambda: copy.layout(1))


@pytest.mark.parametrize(
    "column, fine",
    {
        "layout": ("-1",), "method": ("x",), "merge": ("x",), "on_front": ("-1",), "kv_ratio": ("-1", "9" * 30),
        "kv_bytes_per_token": ("-1",), "kv_heads": ("x",), "error": ("-1", "9" * 30), "deploy": (),
        "nll": ("", "-1", "9" * 30), "on_nll_front": ("", "-1"), "weights_bytes": ("", "-1"),
        "perplexity": ("", "nan", "inf", "1e999", "-1", "9" * 30),
    }.items(),
    ids=str,
)  # fmt: skip
def test_a_cell_of_a_front_of_another_kind_is_one_line(copy, column, fine):
    path = copy.path / "pareto.csv"
    text = path.read_text()
    names = ("nan", "inf", "1e999", "-1", "9" * 30, "[[0]]", "0 0|1", "\x00") if "x" in fine else ()
    for value in CELLS:
        path.write_text(text)
        change_cell(path, column, value)
        if value in (*fine, *names):
            assert len(copy.front().table) > 2
        else:
            assert "delete it and run the search again" in refused(path, copy.front)


@pytest.mark.parametrize("column", ["kv_heads", "error", "groups", "layout"])
def test_a_cell_of_a_layer_of_another_kind_is_one_line(copy, column):
    path = copy.layer_path(1)
    text = path.read_text()
    for value in set(CELLS) - ({"-1", "9" * 30} if column == "error" else {""} if column == "layout" else set()):
        path.write_text(text)
        change_cell(path, column, value)
        assert "that layer is searched again" in refused(path, lambda: copy.read_layer(1, 8, 8))


@pytest.mark.parametrize("value", ["x", "a\nb", "\x1b[2J", "1,5", "[[0]]"])
def test_a_measurement_that_is_no_number_is_one_line(copy, value):
    path = copy.path / "pareto.csv"
    path.write_text(
        "\n".join(f"{line},{'kl' if not i else 0.5}" for i, line in enumerate(path.read_text().splitlines()))
    )
    assert copy.front().table["kl"].tolist() == [0.5] * len(copy.front().table)
    change_cell(path, "kl", value)
    assert "\x1b" not in refused(path, copy.front)


def test_a_layer_of_a_model_with_other_heads_is_one_line(copy):
    for heads in ((4, 4), (8, 4), (8, 2)):
        refused(copy.layer_path(1), lambda heads=heads: copy.read_layer(1, *heads))


def test_a_run_that_went_on_gets_a_damaged_layout_back(copy, models):
    """Whatever its bytes are."""
    before = copy.layout_path(1).read_bytes()
    copy.layout_path(1).write_bytes(b"\xff")
    search(models("llama"), copy.path, SearchOptions(fitness="weight", generations=2, population=8))
    assert copy.layout_path(1).read_bytes() == before


# Files that are well-formed, and not what the search wrote


def again(copy, models):
    """The same search, which goes on."""
    return search(models("llama"), copy.path, SearchOptions(fitness="weight", generations=2, population=8))


def bytes_of(copy):
    return {
        p.relative_to(copy.path): p.read_bytes() for p in copy.path.rglob("*.*") if p.name != "run.json" and p.is_file()
    }


def test_layouts_that_were_swapped_or_edited_are_refused_and_come_back(copy, models):
    before = bytes_of(copy)
    first, second = copy.layout_path(1), copy.layout_path(2)
    assert first.read_bytes() != second.read_bytes()
    shutil.copyfile(second, first)
    line = refused(first, lambda: copy.layout(1))
    assert line.endswith("digests/layouts.json): run the same search again, which writes it anew")
    assert copy.layout(2)
    again(copy, models)
    assert bytes_of(copy) == before
    second.write_text(second.read_text().rstrip())
    refused(second, lambda: copy.layout(2))


def test_layers_that_were_swapped_or_edited_are_refused_and_searched_again(copy, models):
    """Where a search goes on, and in a report."""
    before = bytes_of(copy)
    for text in (copy.layer_path(1).read_text(), "\n".join(copy.layer_path(0).read_text().split("\n")[:-2]) + "\n"):
        copy.layer_path(0).write_text(text)
        line = refused(copy.layer_path(0), lambda: again(copy, models))
        assert line.endswith("digests/00.json): delete it, and that layer is searched again")
        refused(copy.layer_path(0), lambda: facts_of(copy, similar=False))
        copy.layer_path(0).unlink()
        again(copy, models)
        assert bytes_of(copy) == before


@pytest.mark.parametrize(
    "lost", [("digests/00.json",), ("layers/00.csv",), ("layouts/*", "pareto.csv"), ("digests/*",)]
)
def test_a_search_that_was_killed_between_two_files_goes_on_to_the_same(copy, models, lost):
    """A digest comes first; without one a file is that of an older version."""
    before, gone = bytes_of(copy), {path for pattern in lost for path in copy.path.glob(pattern)}
    for path in gone:
        path.unlink()
    again(copy, models)
    stay = ("digests/0*.json", "digests/pareto.json")  # of files that are not written again
    given_up = {path.relative_to(copy.path) for path in gone if any(path.match(pattern) for pattern in stay)}
    assert bytes_of(copy) == {name: content for name, content in before.items() if name not in given_up}


@pytest.mark.parametrize("text", JSON, ids=lambda text: text[:9])
def test_damaged_digests_are_one_line(copy, text):
    path = copy.path / "digests" / "layouts.json"
    path.write_text(text)
    line = refused(copy.layout_path(1), lambda: copy.layout(1))
    assert f"{path} is damaged" in line and "delete it, and nothing is compared with it" in line


def test_a_layout_of_an_older_run_that_was_swapped_is_not_its_rows(copy):
    """Such a run has no digests: what a row announces is compared."""
    shutil.rmtree(copy.path / "digests")
    table = copy.front().table
    other = int(table.index[table["kv_ratio"] < table["kv_ratio"].iloc[1]][0])
    shutil.copyfile(copy.layout_path(other), copy.layout_path(1))
    assert copy.layout(1) == copy.layout(other)
    with pytest.raises(
        GrouperError, match=r"pareto.csv are of two layouts \(\S+% and \S+% of the KV cache\): delete both"
    ):
        copy.layout_of(table.loc[1])
    assert copy.layout_of(table.loc[other]) == copy.layout(other)
    change_cell(copy.path / "pareto.csv", "kv_ratio", "0.125", other + 1)
    with pytest.raises(GrouperError, match="are of two layouts"):
        export_from_run(copy.path, copy.path.parent / "out", Selection(layout=other))
    assert not (copy.path.parent / "out").exists()


def test_facts_of_a_run_that_were_edited_are_refused_but_for_places_and_what_may_differ(copy):
    path = copy.path / "run.json"
    text, settings = path.read_text(), copy.settings
    for field, value in (("model", "elsewhere"), ("text", "moved.txt"), ("images", "moved"), ("jobs", 3)):
        change(path, field, value)
        assert json.loads(path.read_text())[field] == value and copy.settings != settings
        path.write_text(text)
    for field, value in (("seed", 7), ("tokens", 4096), ("fingerprint", "x"), ("set_aside", False), ("mine", 1)):
        change(path, field, value)
        line = refused(path, lambda: copy.settings)
        digests = copy.path / "digests" / "run.json"
        assert line.endswith(
            f"(it is not what Grouper wrote; to keep the change, delete {digests}): "
            "search again, into another folder or with --overwrite"
        )
        path.write_text(text)
    change(path, "seed", 7)
    digests.unlink()
    assert copy.settings.options.seed == 7


def test_a_front_that_was_edited_is_taken_as_it_stands_and_that_is_told(copy):
    told = []
    copy.front(told.append)
    assert not told
    change_cell(copy.path / "pareto.csv", "error", "0.5")
    assert copy.front(told.append).table["error"].iloc[1] == 0.5
    assert len(told) == 1 and told[0].startswith(f"{copy.path / 'pareto.csv'} is taken as it stands (it is not what")
    copy.write_front(copy.front())
    copy.front(told.append)
    assert len(told) == 1


def test_a_file_that_was_being_replaced_is_known_before_and_after(copy):
    """Killed between the digest and the file. Where the replacement is done, the file of before is another one."""
    path, digests = copy.path / "proxies.csv", copy.digests
    digests.write(path, "one")
    digests.note("proxies", {path: "two"}, {path: "one"})
    for text in ("one", "two"):
        path.write_text(text)
        digests.check("proxies", path)
    digests.write(path, "three")
    for text in ("one", "two"):
        path.write_text(text)
        with pytest.raises(GrouperError, match="not what Grouper wrote"):
            digests.check("proxies", path)
    path.unlink()
    digests.write(path, "four")
    digests.check("proxies", path)


@pytest.mark.parametrize("file", ["proxies.csv", "run.json"])
def test_a_kill_leaves_a_file_that_its_digest_knows(copy, monkeypatch, file):
    """At any of the writes of a replacement, and of a first one."""
    path, digests = copy.path / file, copy.digests
    for fresh in (False, True):
        for stop in range(3):
            for old in (path, copy.path / "digests" / f"{path.stem}.json"):
                old.unlink(missing_ok=True)
            if not fresh:
                digests.write(path, "one")
            with monkeypatch.context() as killed, suppress(KeyboardInterrupt):
                kill_at(stop, killed)
                digests.write(path, "two")
            assert fresh or path.read_text() in ("one", "two")
            if path.is_file():
                digests.check(path.stem, path)
            else:
                assert not (copy.path / "digests" / f"{path.stem}.json").exists(), "run.json makes a folder ours"


def kill_at(stop: int, monkeypatch) -> None:
    """The process ends before so many files more are written."""
    left = iter([True] * stop)
    write = outputs.write_file

    def killed(path, how):
        if not next(left, False):
            raise KeyboardInterrupt
        write(path, how)

    monkeypatch.setattr(outputs, "write_file", killed)
