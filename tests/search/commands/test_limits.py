"""Numbers and devices that their users do not take."""

import pytest
import typer
from commands import grouper

from grouper.errors import GrouperError
from grouper.machine import Machine
from grouper.uptraining.options import UptrainOptions
from search.commands.limits import usable_device
from search.options import SearchOptions

HUGE = 10**30
SEARCH, EXPORT = ("search", "demo", "-o", "run"), ("export", "run", "-o", "out")
HEAL = ("uptrain", "out", "-o", "healed", "--text", "demo")


@pytest.mark.parametrize(
    "arguments",
    [
        (*SEARCH, "--seed", 2**64), (*SEARCH, "--seed", HUGE), (*SEARCH, "--population", 100_001),
        (*SEARCH, "--generations", HUGE), (*SEARCH, "--tokens", HUGE), (*SEARCH, "--window", HUGE),
        (*SEARCH, "--device", "mps"),
        (*SEARCH, "--device", "meta"), (*SEARCH, "--device", "privateuseone"), (*SEARCH, "--device", "hpu"),
        (*SEARCH, "--device", "cpu:x"), ("inspect", "demo", "--context", HUGE), ("inspect", "demo", "--batch", -HUGE),
        ("evaluate", "run", "--text", "demo", "--limit", HUGE), (*EXPORT, "--layout", HUGE),
        (*EXPORT, "--kv-bytes-per-token", HUGE), (*EXPORT, "--refine-tokens", HUGE), (*HEAL, "--lora-rank", 10**9),
        (*HEAL, "--seed", 2**64), (*HEAL, "--teacher-device", "meta"), (*HEAL, "--patience", HUGE),
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-2]} {arguments[-1]}",
)  # fmt: skip
def test_they_are_usage_errors(tmp_path, arguments):
    done = grouper(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and "Usage: " in done.stderr and arguments[-2] in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_options_is_held_to_the_same_limits(tmp_path):
    (tmp_path / "o.yaml").write_text(f"seed: {HUGE}")
    assert grouper(*SEARCH, "--config", "o.yaml", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_a_device_without_float64_is_refused_and_why_is_said(name):
    with pytest.raises(GrouperError, match="have no float64, in which heads are merged: --device cpu"):
        Machine(name)
    with pytest.raises(typer.BadParameter, match="have no float64"):
        usable_device(name)


@pytest.mark.parametrize("options", [{"seed": 2**64}, {"population": 100_001}, {"generations": HUGE}], ids=str)
def test_from_python_they_are_refused(options):
    with pytest.raises(GrouperError, match="expected"):
        SearchOptions(**options).resolved()


def test_the_largest_seed_is_taken():
    assert SearchOptions(seed=2**64 - 1).resolved().seed == UptrainOptions(seed=2**64 - 1).seed
    with pytest.raises(GrouperError, match="below 2"):
        UptrainOptions(seed=2**64)
