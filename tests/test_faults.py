"""A case of each class of bad input, and of each way to be stopped; bench/ has the thousands."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import python
from safetensors import SafetensorError
from tiny_models import ROOT

import cli
from grouper.errors import GrouperError

BENCH = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "bench"))), "PYTHONWARNINGS": "ignore"}


def bench(*command: str) -> list[dict]:
    done = python(ROOT / "bench" / command[0], *command[1:], environment=BENCH)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["rows"]


def test_bad_input_ends_in_one_line_and_harms_nothing():
    rows = bench("faults.py", "--count", "1", "--seed", "5")
    assert len(rows) == 18 and all(row["clean"] + row["refused"] == 1 for row in rows), rows


def test_every_parser_reads_or_refuses_what_is_damaged():
    rows = bench("fuzz.py", "--minutes", "0.001", "--examples", "10", "--seed", "5")
    assert len(rows) == 21 and all(row["examples"] >= 10 and not row["finds"] for row in rows), rows


def test_killed_commands_go_on_to_the_same_files():
    (row,) = bench("kills.py", "--kills", "1", "--stops", "1", "--seed", "3")
    assert row["kills"] == row["same files"] == 1 and row["stops"] == row["stopped in time"]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_command_also_deep_in_a_computation(tmp_path, number, code):
    """A computation that does not come back to Python for long, as large eigenproblems do not."""
    program = tmp_path / "busy.py"
    program.write_text(
        "import sys, cli, numpy as np\n"
        "def busy():\n    print('at work', flush=True)\n    np.linalg.svd(np.random.rand(3000, 3000))\n"
        "cli.app = busy\ncli.main()\n"
    )
    env = {**BENCH, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, program, "--quiet", "search"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as busy:
        assert busy.stdout.readline() == b"at work\n"
        time.sleep(0.3)
        asked = time.monotonic()
        busy.send_signal(number)
        assert busy.wait(10) == code and time.monotonic() - asked < 2.5
        assert busy.stderr.read() == b"grouper: stopped; the same command goes on from here\n"


def test_a_signal_that_is_heard_at_once_ends_in_one_line(tmp_path):
    """Also where the process cannot end within the time that it has. Nothing goes on where nothing is kept."""
    program = tmp_path / "idle.py"
    program.write_text(
        "import atexit, sys, time, cli\n"
        "def idle():\n    atexit.register(time.sleep, 30)\n    print('at work', flush=True)\n    time.sleep(30)\n"
        "cli.app = idle\ncli.main()\n"
    )
    command = [sys.executable, program, "inspect", "search"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=BENCH) as idle:
        assert idle.stdout.readline() == b"at work\n"
        idle.send_signal(signal.SIGTERM)
        assert idle.wait(10) == 143
        assert idle.stderr.read() == b"grouper: stopped\n"


def failing(monkeypatch, capsys, error: BaseException, *arguments: str) -> tuple[int, str]:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli, "stop_on_signals", lambda say: None)
    monkeypatch.setattr(sys, "argv", ["grouper", "search", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capsys.readouterr().err


def test_what_nobody_foresaw_is_one_line_and_debug_shows_it_whole(monkeypatch, capsys):
    code, said = failing(monkeypatch, capsys, KeyError("wei\nrd"))
    assert code == 1 and said.count("\n") == 1
    assert said.startswith("grouper: internal error: KeyError") and "--debug" in said
    code, said = failing(monkeypatch, capsys, KeyError("wei\x1b[2Jrd"), "--debug")
    assert code == 1 and said.startswith("Traceback (most recent call last):") and "raise error" in said
    assert "KeyError" in said and "\x1b" not in said
    assert sys.argv == ["grouper", "search"], "commands do not see it"


def test_messages_hold_no_secrets_and_no_control_characters(monkeypatch, capsys):
    code, said = failing(monkeypatch, capsys, GrouperError("no folder \x1b[2Jhf_abcdefGHIJ12\nhere"))
    assert code == 1 and said == r"grouper: no folder \x1b[2Jhf_*** here" + "\n"


def test_a_line_stays_one_that_people_read(monkeypatch, capsys):
    code, said = failing(monkeypatch, capsys, GrouperError(f"models of type {'x' * 10_000} are not supported"))
    assert code == 1 and len(said) < 520 and said.startswith("grouper: models of type x")
    assert said.endswith("are not supported\n") and " ... " in said


def test_names_that_are_no_utf8_are_refused(monkeypatch, capsys):
    code, said = failing(monkeypatch, capsys, AssertionError("not reached"), "models/\udcff")
    assert code == 1 and "is not UTF-8" in said


def test_a_full_disk_is_said_with_what_to_do(monkeypatch, capsys):
    code, said = failing(monkeypatch, capsys, OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors"))
    assert code == 1 and "out/model.safetensors" in said and "make room, and the same command goes on" in said
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "make room" in failing(monkeypatch, capsys, full)[1]
    assert "make room" not in failing(monkeypatch, capsys, PermissionError(errno.EACCES, "Permission denied"))[1]


def test_errors_of_the_system_are_said_in_words_and_name_outputs_as_they_were_asked_for(monkeypatch, capsys):
    error = PermissionError(errno.EACCES, "Permission denied", "/x/.run.json.77-0a1b2c3d.partial")
    assert failing(monkeypatch, capsys, error) == (1, "grouper: /x/run.json: permission denied\n")


def test_memory_that_is_short_is_said(monkeypatch, capsys):
    assert "memory is short" in failing(monkeypatch, capsys, MemoryError())[1]


def test_an_output_in_the_models_folder_is_refused_before_anything_is_written(reader, capsys, monkeypatch):
    monkeypatch.setattr(cli, "stop_on_signals", lambda say: None)
    before = sorted(Path(reader).iterdir())
    monkeypatch.setattr(sys, "argv", ["grouper", "search", str(reader), "-o", f"{reader}/run", "--overwrite"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1 and "own folder" in capsys.readouterr().err
    assert sorted(Path(reader).iterdir()) == before
    of_a_gpu = failing(monkeypatch, capsys, torch.OutOfMemoryError("Tried to allocate 3.64 GiB"))[1]
    assert "the GPU's memory is short: give fewer --jobs" in of_a_gpu
