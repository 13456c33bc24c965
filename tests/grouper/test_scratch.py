"""Temporary folders of processes that may be killed."""

import os
import subprocess
import sys
import tempfile

import pytest

from grouper.scratch import ScratchFolder

HOLD = """
import time
from grouper.scratch import ScratchFolder
folder = ScratchFolder()
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_goes_with_its_block(place):
    with ScratchFolder() as folder:
        (folder / "moments.safetensors").write_text("large")
        assert folder.parent == place
    assert list(place.iterdir()) == []


def test_folders_of_killed_processes_go_and_those_of_others_stay(place):
    (place / "grouper-mine").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    ) as other:
        theirs = place / os.path.basename(other.stdout.readline().strip())
        os.utime(theirs, (0, 0))
        ScratchFolder().remove()
        assert theirs.is_dir()
        other.kill()
    os.utime(theirs)
    ScratchFolder().remove()
    assert theirs.is_dir(), "it may just have been made"
    os.utime(theirs, (0, 0))
    ScratchFolder().remove()
    assert [p.name for p in place.iterdir()] == ["grouper-mine"]
