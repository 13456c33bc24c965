"""The commands that commands print, run exactly as they are printed, from a folder where the model is not."""

import json
import shlex
import shutil
import sys

import pandas as pd
import pytest
from tiny_models import add_tokenizer, make_model

import cli
from grouper.calibration.source import DATA
from search import RunFolder, pick


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with a model in models/original, and one to work in, with texts of the names that commands print."""
    folder = tmp_path_factory.mktemp("job")
    sizes = {"vocab_size": 4096, "num_hidden_layers": 2, "hidden_size": 32}
    add_tokenizer(make_model(folder / "models" / "original", heads=4, **sizes))
    (folder / "work").mkdir()
    text = (DATA / "addresses-1977-2016.txt").read_text()
    for name, part in {"calibration": text[:40_000], "other": text[40_000:50_000], "training": text[50_000:70_000]}.items():
        (folder / "work" / f"{name}.txt").write_text(part)
    return folder


@pytest.fixture
def typed(job, monkeypatch, capsys):
    """typed(line): what the command says on stderr, line by line. In this process, which has torch loaded."""
    monkeypatch.chdir(job / "work")

    def run(line: str) -> list[str]:
        words = shlex.split(line)
        assert words[0] == "grouper"
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        assert cli.app(words[1:], standalone_mode=False) in (None, 0)
        return capsys.readouterr().err.splitlines()

    return run


def next_of(said: list[str]) -> list[str]:
    return [line.removeprefix("next: ") for line in said if line.startswith("next: ")]


def test_each_next_line_runs_as_it_is_printed(job, typed, monkeypatch):
    steps = next_of(typed(f"grouper inspect {job / 'models' / 'original'}"))
    done = []
    while steps:
        step = steps.pop(0)
        done.append(step.split()[1])
        steps += next_of(typed(step))
    assert done == ["search", "evaluate", "export", "evaluate", "uptrain", "evaluate"]
    work, original = job / "work", job / "models" / "original"
    facts = [json.loads((work / name / "grouper.json").read_text()) for name in ("regrouped", "regrouped-healed")]
    assert facts[0]["merge"] == "spectral+refine" and facts[0]["refined"]["tokens"] > 0
    assert {f["base_model"] for f in facts} == {"original"} and str(job) not in json.dumps([f["base_fingerprint"] for f in facts])
