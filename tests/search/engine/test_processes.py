"""Processes beside the command's own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_models import ROOT

from grouper.errors import GrouperError
from search.engine.processes import workers

COMMAND = """
import os, time
from search.engine.processes import workers

if __name__ == "__main__":
    with workers(2, "cpu") as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(20)}, flush=True)
        time.sleep(60)
"""


def test_one_worker_is_the_command_itself():
    with workers(1, "cpu") as pool:
        assert pool is None


def test_workers_are_processes_of_their_own():
    with workers(2, "cpu") as pool:
        assert pool.submit(os.getpid).result() != os.getpid()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal on Windows")
def test_a_worker_that_is_killed_is_one_line_with_what_to_do():
    with pytest.raises(GrouperError, match=r"--jobs 1.*the same command goes on"), workers(2, "cpu") as pool:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL)
        pool.submit(time.sleep, 30).result()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal on Windows")
def test_workers_end_when_the_command_was_killed(tmp_path: Path):
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    command = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    started = [int(pid) for pid in command.stdout.readline().split()]
    assert started and all(psutil.pid_exists(pid) for pid in started)
    command.kill()
    command.communicate()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in started)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_import_nothing_from_the_current_folder(tmp_path: Path):
    """Which may be a model's, that somebody has just downloaded."""
    downloaded, script = tmp_path / "model", tmp_path / "command.py"
    downloaded.mkdir()
    for name in ("pickle", "runpy", "fitness", "search"):
        (downloaded / f"{name}.py").write_text("open('executed', 'w')\nraise SystemExit\n")
    script.write_text(COMMAND.replace("time.sleep(60)", "pass"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=downloaded, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert not (downloaded / "executed").exists()
