"""Measurements that can be compared, and those that cannot."""

import json
from dataclasses import replace

import pytest
from made_up_runs import SEARCHED, made_up_run, scored

from grouper import GrouperError
from grouper.refinement.options import RefineOptions
from search import SearchOptions
from search.runs.record import Measuring, comparable, compared_by, noted, refining_options
from search.runs.samples import note_sample, read_samples


def test_measuring_anew_forgets_all_of_it(tmp_path):
    measured = {"nll": [2.0, 3.0, 4.0, 5.0], "kl": [0.0, 1.0, 2.0, 3.0]}
    folder = made_up_run(tmp_path / "run", scored(*SEARCHED), **measured)
    folder.note_refined(1, "mean+refine", [(1.0, 0.5)])
    note_sample(folder.path, 1, "mean", "Once", " upon")
    before = Measuring("a.txt", "a", (2, 64), "float32", ("mean.x=1",))
    (folder.path / "evaluation.json").write_text(json.dumps({**before.to_data(), "refinement": {"scope": "block"}}))
    for other in (
        replace(before, digest="b"), replace(before, windows=(2, 32)), replace(before, dtype="bfloat16"),
        replace(before, set=()),
    ):  # fmt: skip
        with pytest.raises(GrouperError, match="other text, windows or parameters"):
            other.check(folder, folder.front(), None, overwrite=False)
    assert read_samples(folder.path), "what is refused forgets nothing"
    kept = replace(before, text="b.txt").check(folder, folder.front(), None, overwrite=False)
    assert kept.table["nll"].tolist() == measured["nll"], "the same text under another name"
    front = replace(before, digest="b").check(folder, folder.front(), None, overwrite=True)
    for table in (front.table, folder.front().table):
        assert table[["nll", "kl"]].isna().all(axis=None) and table["on_nll_front"].isna().all()
    assert folder.read_refined().empty and not read_samples(folder.path)
    assert json.loads((folder.path / "evaluation.json").read_text()) == json.loads(
        json.dumps(replace(before, digest="b").to_data())
    )


def test_measurements_that_were_made_otherwise_say_nothing_of_an_export(tmp_path):
    """The original's stand in any case: nothing of it was merged."""
    rows = scored(*SEARCHED)
    run = made_up_run(tmp_path / "run", rows, nll=[2.0, 3.0, 4.0, 5.0])
    front = run.front()
    front.table.loc[2, "merge"] = "mean+refine"
    made = {"set": ["mean.x=1"], "refinement": {"scope": "block", "tokens": 4096}}
    (run.path / "evaluation.json").write_text(json.dumps(made))
    block, other = RefineOptions("block", tokens=4096), RefineOptions("attention", tokens=4096)

    def known(refine: RefineOptions | None, set: tuple[str, ...]) -> list[bool]:
        return comparable(run, front, refine, set).table["nll"].notna().tolist()

    assert known(None, ("mean.x=1",)) == known(block, ("mean.x=1",)) == [True] * 4
    assert known(other, ("mean.x=1",)) == [True, True, False, True], "refined otherwise"
    assert known(block, ()) == known(block, ("mean.x=2",)) == [True, False, False, False], "merged otherwise"
    assert front.table["nll"].notna().all()


def test_what_others_measured_stays_noted(tmp_path):
    """Tasks beside text, and how layouts were refined, where this measuring refines none."""
    run = made_up_run(tmp_path / "run", scored(*SEARCHED), nll=[2.0, 3.0, 4.0, 5.0])
    path = run.path / "evaluation.json"
    on_text = Measuring("a.txt", "a", (2, 64), "float32")
    on_text.check(run, run.front(), RefineOptions("block", tokens=4096), overwrite=False)
    tasks = Measuring(None, None, None, "float32", tasks={"limit": 10, "few_shot": 0})
    tasks.check(run, run.front(), None, overwrite=False)
    noted = json.loads(path.read_text())
    assert noted == {
        "text": "a.txt", "digest": "a", "windows": [2, 64], "dtype": "float32",
        "tasks": {"limit": 10, "few_shot": 0}, "refinement": {"scope": "block", "tokens": 4096},
    }  # fmt: skip
    on_text.check(run, run.front(), None, overwrite=False)
    assert json.loads(path.read_text()) == noted
    with pytest.raises(GrouperError, match="other items of tasks"):
        replace(tasks, tasks={"limit": 20, "few_shot": 0}).check(run, run.front(), None, overwrite=False)
    with pytest.raises(GrouperError, match=r"refined otherwise \(scope block, tokens 4096\)"):
        on_text.check(run, run.front(), RefineOptions("block", tokens=8192), overwrite=False)


def test_runs_are_compared_by_all_that_they_have_in_common(tmp_path):
    """Nats on one text, errors of one model and fitness; of one model the text's tokens count, of others its name."""

    def run(name: str, evaluated: dict | None, **more):
        folder = made_up_run(tmp_path / name, scored(*SEARCHED), **more, nll=[2.0, 3.0, 4.0, 5.0])
        if evaluated:
            (folder.path / "evaluation.json").write_text(json.dumps(evaluated))
        return folder

    wiki = {"text": "wiki", "digest": "a"}
    one, same = run("one", wiki), run("same", wiki)
    assert compared_by([one, same]) == ["over", "error"]
    assert compared_by([one, run("cut", {**wiki, "digest": "b"})]) == ["error"]
    other = SearchOptions(fitness="weight")
    assert compared_by([one, run("fitness", wiki, options=other)]) == ["over"]
    assert compared_by([one, run("model", {**wiki, "digest": "c"}, fingerprint="g")]) == ["over"]
    with pytest.raises(GrouperError, match="neither nats on one text nor one model and fitness"):
        compared_by([one, run("neither", {"text": "code", "digest": "d"}, fingerprint="h")])


@pytest.mark.parametrize(
    "change, told",
    [
        ({"windows": "x"}, "windows.* is 'x'"), ({"windows": [1.5]}, "windows"), ({"digest": 3}, "digest is 3"),
        ({"set": "x"}, "set is 'x'"), ({"tasks": {"limit": "x"}}, "tasks.limit is 'x'"), ({"dtype": []}, "dtype is "),
        ({"refinement": {"scope": []}}, "refinement.scope"), ({"text": {}}, "text is {}"),
        ({"text": float("nan")}, "NaN"),
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_record_is_one_line_and_measured_anew(tmp_path, change, told):
    run = made_up_run(tmp_path / "run", scored(*SEARCHED), nll=[2.0, 3.0, 4.0, 5.0])
    path, measuring = run.path / "evaluation.json", Measuring("a.txt", "a", (2, 64), "float32")
    path.write_text(json.dumps({**measuring.to_data(), **change}))
    for read in (
        lambda: comparable(run, run.front(), None, ()),
        lambda: measuring.check(run, run.front(), None, overwrite=False),
        lambda: noted(run),
    ):
        with pytest.raises(GrouperError, match=told) as refused:
            read()
        line = str(refused.value)
        assert line.startswith(f"{path} is damaged (") and line.endswith("): measure the run again, with --overwrite")
        assert "\n" not in line
    assert refining_options(run) == ["--text", "calibration.txt"], "a hint depends on nothing"
    measuring.check(run, run.front(), None, overwrite=True)
    assert noted(run) == {"text": "a.txt", "digest": "a", "windows": [2, 64], "dtype": "float32"}


@pytest.mark.parametrize("windows", [(2, 64), ([2, 64], [3, 64])])
def test_a_record_is_read_as_it_was_written(tmp_path, windows):
    run = made_up_run(tmp_path / "run", scored(*SEARCHED), nll=[2.0, 3.0, 4.0, 5.0])
    tasks = {"limit": None, "few_shot": 3}
    measuring = Measuring("a.txt", "a", windows, "float32", ("mean.x=1",), tasks)
    for _ in range(2):
        measuring.check(run, run.front(), RefineOptions("block", tokens=4096).plan("cpu"), overwrite=False)
    assert noted(run) == json.loads((run.path / "evaluation.json").read_text())
    assert noted(run)["tasks"] == tasks and noted(run)["refinement"]["tokens"] == 4096
