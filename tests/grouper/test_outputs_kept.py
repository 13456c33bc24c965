"""Locks, and what killed processes leave."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from grouper import outputs
from grouper.errors import GrouperError, is_disk_full
from grouper.outputs import (
    bears,
    forget_work,
    locked,
    refuse_existing,
    refuse_foreign,
    refuse_inside,
    work_key,
    write_file,
    write_text,
)  # fmt: skip

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


@pytest.mark.parametrize("ending", ["refine", "uptrain", "logs"])
def test_no_work_in_progress_in_the_models_folder(tmp_path, ending):
    (tmp_path / f"out.{ending}").mkdir()
    with pytest.raises(GrouperError, match="own folder"):
        refuse_inside(tmp_path / "out", None, tmp_path / f"out.{ending}")


def test_no_output_in_the_folder_of_another_model(tmp_path):
    for name in ("config.json", "model.safetensors"):
        refuse_inside(tmp_path / "run", None)
        (tmp_path / name).write_text("{}")
    for output in (tmp_path / "run", tmp_path / "a" / "b" / "page.html"):
        with pytest.raises(GrouperError, match="a model's folder"):
            refuse_inside(output, None)


def test_a_file_that_is_not_ours_is_never_replaced(tmp_path):
    page, ours = tmp_path / "page.html", lambda path: bears(path, b"by Grouper")
    refuse_foreign(page, ours)
    page.write_text("<!-- by Grouper -->")
    refuse_foreign(page, ours)
    page.write_text("x" * 9000 + "by Grouper")
    refuse_foreign(page, ours)
    page.write_text("x" * 9000 + "by Grouper" + "x" * 9000)
    (tmp_path / "link.html").symlink_to(page)
    (tmp_path / "dangling.html").symlink_to(tmp_path / "nowhere")
    for name in ("page.html", "link.html", "dangling.html"):
        with pytest.raises(GrouperError, match="not written by Grouper"):
            refuse_foreign(tmp_path / name, ours)
    with pytest.raises(GrouperError, match="is a folder"):
        refuse_foreign(tmp_path, ours)


def test_the_next_write_of_a_file_removes_what_a_killed_one_left_of_it(tmp_path):
    path, done = tmp_path / "a.json", subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    machine = outputs._writer().partition("-")[2]
    dead = tmp_path / f".a.json.{done.pid}-{machine}.partial"
    others = [f".a.json.{os.getppid()}-{machine}.partial", f".a.json.{done.pid}-elsewhere.partial", ".b.json.1.partial"]
    for name in (dead.name, *others):
        (tmp_path / name).write_text("half")
    write_text(path, "{}")
    assert not dead.exists() and sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "a.json"])


def test_when_an_output_is_whole_all_work_on_it_goes_and_nothing_else(tmp_path):
    kept = tmp_path / "out.refine"
    for name in (work_key(a=1), work_key(a=2)):
        (kept / name).mkdir(parents=True)
        (kept / name / "layer-000.safetensors").write_text("weights")
    forget_work(kept)
    assert not kept.exists()
    forget_work(kept)
    (kept / work_key(a=1)).mkdir(parents=True)
    (kept / "mine.txt").write_text("mine")
    forget_work(kept)
    assert [p.name for p in kept.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_said_with_the_files_name(tmp_path):
    def fill(_: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(GrouperError, match=r"cannot write .*best.safetensors.* No space left") as full:
        write_file(tmp_path / "best.safetensors", fill)
    assert is_disk_full(full.value) and list(tmp_path.iterdir()) == []

    def fill_up(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*front.csv'$"):
        write_file(tmp_path / "front.csv", fill_up)


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
