import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from whole_job import whole_job

import grouper
from grouper import GrouperError, HeadLayout, UptrainOptions, export, uptrain_model
from grouper.calibration.source import TextSource
from grouper.ranks import ALONE, Ranks, started_ranks

ROOT = Path(grouper.__file__).parent.parent
HERE = ROOT / "tests"


def together(*command: object, **environment: str) -> subprocess.CompletedProcess:
    """Two ranks of a Python program, on CPU."""
    paths = os.pathsep.join(map(str, (ROOT, HERE)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, *map(str, command)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )  # fmt: skip


def test_what_ranks_take_is_everything_once():
    ranks = [Ranks(rank, 3) for rank in range(3)]
    assert [r.share("abcdefg") for r in ranks] == ["adg", "be", "cf"]
    assert [r.portion("abcdefg") for r in ranks] == ["ab", "cd", "efg"]
    assert [r.portion("ab") for r in ranks] == ["", "a", "b"], "there may be fewer items than ranks"
    assert ALONE.share("abc") == ALONE.portion("abc") == "abc"


def test_alone_nothing_is_joined(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert started_ranks() is ALONE and ALONE.gather(7) == [7] and ALONE.first_does(lambda: 3) == 3
    with pytest.raises(GrouperError, match="mine"):
        ALONE.first_does(lambda: (_ for _ in ()).throw(GrouperError("mine")))


@pytest.mark.drawn
def test_two_ranks_write_what_one_writes(reader, text, tmp_path):
    """Layers, front and measurements byte for byte; refined weights but for the order of sums."""
    alone, two = tmp_path / "alone", tmp_path / "two"
    whole_job(str(reader), str(text), alone)
    done = together(HERE / "whole_job.py", reader, text, two)
    assert done.returncode == 0, done.stderr
    files = sorted(p.relative_to(alone) for p in alone.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for name in files:
        if name.name == "refined.csv":  # errors of refined layers, but for the order of sums
            ours, theirs = (pd.read_csv(folder / name).to_numpy(object)[:, 2:].astype(float) for folder in (alone, two))
            assert np.allclose(ours, theirs, rtol=1e-3)
        elif name.parts[0] == "run" and name.name != "run.json":
            assert (alone / name).read_bytes() == (two / name).read_bytes(), name
    for out in ("out-2", "out-3", "healed"):
        ours, theirs = (load_file(folder / out / "model.safetensors") for folder in (alone, two))
        for name, tensor in ours.items():
            off = (tensor - theirs[name]).norm() / tensor.norm()
            assert off < 1e-4, f"{name} of {out} differs by {off:.1e} of its size"
        refined = json.loads((two / out / "grouper.json").read_text())["refined"]
        if out == "healed":
            continue
        assert refined["tokens"] == 1536 and refined["steps"] == 5


def test_ranks_that_hold_parts_of_the_model_train_what_one_trains(reader, text, tmp_path):
    """FSDP, as `accelerate launch --use_fsdp` asks for it; interrupted by nothing, resumed by nothing."""
    export(reader, HeadLayout.from_labels([[0, 0, 1, 1, 2, 2, 3, 3]] * 3, 8, 16), tmp_path / "in", merge="mean")
    options = UptrainOptions(tokens=2048, step_tokens=256, micro_tokens=64, window=64, validate=4, lr=1e-3)
    uptrain_model(tmp_path / "in", tmp_path / "alone", TextSource(str(text)), options, base=str(reader))
    asked = ["--base", reader, "--text", text, "--tokens", 2048, "--step-tokens", 256, "--micro-tokens", 64]
    asked += ["--window", 64, "--lr", 0.001, "--device", "cpu"]
    launched = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    done = together("-m", "cli", "uptrain", tmp_path / "in", "-o", tmp_path / "two", *asked, **launched)
    assert done.returncode == 0, done.stderr
    ours, theirs, start = (load_file(tmp_path / f / "model.safetensors") for f in ("alone", "two", "in"))
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() < 0.02 * (tensor - start[name]).norm() + 1e-6, name


def test_what_the_first_rank_refuses_is_said_once_and_stops_all(reader, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("not a run")
    done = together("-m", "cli", "search", reader, "-o", tmp_path / "taken", "--fitness", "weight")
    assert done.returncode == 1 and done.stderr.count("grouper: ") == 1 and "taken" in done.stderr
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]
