"""Locks, and what killed processes leave."""

import os
import subprocess
import sys

import pytest

from grouper.errors import GrouperError
from grouper.outputs import locked, refuse_existing, refuse_inside, work_key

HOLD = """
import sys, time
from pathlib import Path
from grouper.outputs import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_told_who_writes_and_takes_over_when_that_dies(tmp_path):
    output = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(GrouperError, match=f"process {other.pid} on "), locked(output):
            pass
        with locked(tmp_path / "elsewhere"):
            pass
        other.kill()
        other.wait()
    with locked(output):
        pass
    assert list(tmp_path.iterdir()) == [], "nothing is left beside the output"


def test_leftovers_are_swept_and_what_was_being_replaced_comes_back(tmp_path):
    output = tmp_path / "out"
    (tmp_path / ".out.abc.partial").mkdir()
    (tmp_path / ".out.abc.partial" / "shard-0").write_text("half")
    (tmp_path / ".out.xyz.replaced" / "old").mkdir(parents=True)
    (tmp_path / ".out.xyz.replaced" / "old" / "config.json").write_text("{}")
    (tmp_path / ".outer.abc.partial").write_text("another output's")
    with locked(output):
        assert (output / "config.json").read_text() == "{}"
        (output / ".pareto.csv.77.partial").write_text("half")
    with locked(output):
        assert [p.name for p in output.iterdir()] == ["config.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".outer.abc.partial", "out"]


def test_a_folder_that_alone_may_be_written_to_holds_its_own_lock(tmp_path, monkeypatch):
    output = tmp_path / "run"
    output.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with locked(output):
        assert sorted(p.name for p in output.iterdir()) == [".run.lock", ".run.lock-holder"]
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert list(output.iterdir()) == []


def test_a_run_that_was_killed_before_its_first_file_goes_on(tmp_path):
    (tmp_path / "run" / "layers").mkdir(parents=True)
    refuse_existing(tmp_path / "run", "run.json", overwrite=False)
    (tmp_path / "run" / "layers" / "notes.txt").write_text("somebody's")
    with pytest.raises(GrouperError, match="not written by Grouper"):
        refuse_existing(tmp_path / "run", "run.json", overwrite=False)


def test_no_output_in_around_or_in_place_of_the_model(tmp_path):
    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    (tmp_path / "link").symlink_to(model)
    for output in (model, model / "run", tmp_path / "models", tmp_path / "link" / "run", tmp_path / "link"):
        with pytest.raises(GrouperError, match="own folder"):
            refuse_inside(output, model)
    refuse_inside(tmp_path / "models" / "mine-regrouped", model)
    refuse_inside(model / "run", None)
    assert os.listdir(model) == []


def test_work_in_progress_has_the_same_name_when_options_that_are_off_are_added():
    options = {"lr": 0.1, "steps": None, "inner": {"kl": 1.0, "hidden": 0.0}}
    name = work_key(model="a", options=options)
    inner = {**options["inner"], "new": None}
    more = {"set": (), "tracker": None, "fast": False, "word": "", **options, "inner": inner}
    assert work_key(options=dict(reversed(more.items())), model="a") == name  # in whatever order
    assert len(name) == 16 and name != work_key(model="b", options=options)


@pytest.mark.parametrize("change", [{"lr": 0.2}, {"lr": 0}, {"steps": 0}, {"fast": True}, {"set": ["a"]}, {"lr": None}])
def test_any_other_option_gives_another_name(change):
    assert work_key(options={"lr": 0.1, "steps": None, **change}) != work_key(options={"lr": 0.1, "steps": None})
