"""Outputs that the system would not let be written: one line, before there is work."""

import os
from pathlib import Path

import pytest

from grouper.errors import GrouperError
from grouper.outputs import as_asked_for, locked, new_folder, refuse_existing, refuse_foreign
from grouper.writable import refuse_unwritable


def test_a_name_leaves_room_for_those_of_work_in_progress(tmp_path):
    refuse_unwritable(tmp_path / ("x" * 200))
    with new_folder(tmp_path / ("x" * 200), "marker"):
        pass
    with locked(tmp_path / ("y" * 200)):
        pass
    for name in ("x" * 201, "é" * 101, f"{'x' * 256}/run"):
        with pytest.raises(GrouperError, match=r"is too long a name \(\d+ bytes\): choose one of at most 2"):
            refuse_unwritable(tmp_path / name)


def test_the_root_is_no_output():
    for root in ("/", "//", "/.."):
        with pytest.raises(GrouperError, match="is the root of the file system: choose a folder in it"):
            refuse_unwritable(Path(root))


@pytest.mark.parametrize("check", [
    refuse_unwritable, lambda output: refuse_existing(output, "marker", False),
    lambda output: refuse_foreign(output, lambda _: True),
])  # fmt: skip
def test_nothing_lies_in_a_file(tmp_path, check):
    (tmp_path / "file").write_text("")
    for output in ("file/run", "file/deeper/run"):
        with pytest.raises(GrouperError, match="file is not a folder; choose another output"):
            check(tmp_path / output)
    with pytest.raises(GrouperError, match="file is not a folder"), locked(tmp_path / "file" / "run"):
        pass


def test_a_folder_of_others_is_named(tmp_path, monkeypatch):
    ours = tmp_path / "ours"
    ours.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    refuse_unwritable(ours)
    for output in ("run", "new/run"):
        with pytest.raises(GrouperError, match=f"you may not write in {tmp_path}; choose another output"):
            refuse_unwritable(tmp_path / output)
    assert list(tmp_path.iterdir()) == [ours]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="Linux alone")
def test_a_place_where_nothing_can_be_written_is_not_said_to_be_busy():
    said = r"write in /proc; choose|nothing can be written in /proc"
    with pytest.raises(GrouperError, match=said), locked(Path("/proc/run")):
        pass


@pytest.mark.parametrize(("message", "told"), [
    ("/tmp/.run.json.77-0a1b2c3d.partial: permission denied", "/tmp/run.json: permission denied"),
    ("cannot write out/.half.abc_12.partial/model.safetensors", "cannot write out/half/model.safetensors"),
    ("'.my run.x.partial'", "'.my run.x.partial'"), (".hidden and x.partial", ".hidden and x.partial"),
])  # fmt: skip
def test_messages_name_outputs_as_they_were_asked_for(message, told):
    assert as_asked_for(message) == told
