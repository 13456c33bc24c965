"""The commands that commands print, run exactly as they are printed, from a folder where the model is not; and whether
an export is refined."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from tiny_models import add_tokenizer, make_model

import cli
from grouper import HeadLayout, TextSource
from grouper.calibration.source import DATA
from search import RunFolder, SearchOptions, evaluate, search
from search.runs.picking import best_within, representative

TEXT = (DATA / "addresses-1977-2016.txt").read_text()
TEXTS = {"calibration.txt": TEXT[:12_000], "other.txt": TEXT[12_000:18_000], "training.txt": TEXT[18_000:24_000]}


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A folder with a model in models/original, and one to work in, with texts of the names that commands print."""
    folder = tmp_path_factory.mktemp("job")
    sizes = {"vocab_size": 4096, "num_hidden_layers": 2, "hidden_size": 32}
    add_tokenizer(make_model(folder / "models" / "original", heads=4, **sizes))
    (folder / "work").mkdir()
    for name, text in TEXTS.items():
        (folder / "work" / name).write_text(text)
    return folder


@pytest.fixture
def typed(job, monkeypatch, capsys):
    """typed(line): lines on stdout and on stderr of a command. It runs in this process, which has torch loaded."""
    monkeypatch.chdir(job / "work")

    def run(line: str) -> tuple[list[str], list[str]]:
        words = shlex.split(line)
        assert words[0] == "grouper"
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        assert cli.app(words[1:], standalone_mode=False) in (None, 0)
        said = capsys.readouterr()
        return said.out.splitlines(), said.err.splitlines()

    return run


def next_of(said: tuple[list[str], list[str]]) -> list[str]:
    return [line.removeprefix("next: ") for line in said[1] if line.startswith("next: ")]


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "grouper.json").read_text())


def test_each_next_line_runs_as_it_is_printed(job, typed, monkeypatch, tmp_path):
    steps, done = next_of(typed(f"grouper inspect {job / 'models' / 'original'}")), []
    while steps:
        done.append(steps.pop(0))
        steps += next_of(typed(done[-1]))
    in_one = ["regroup", "evaluate", "uptrain", "layouts", "evaluate"]
    by_step = ["search", "evaluate", "export", "evaluate", "uptrain", "evaluate"]
    assert [step.split()[1] for step in done if " half" in step] == in_one
    assert [step.split()[1] for step in done if " half" not in step] == by_step
    assert "grouper evaluate regrouped --text other.txt" in done, "after an export one measures first"
    exported, healed = (job / "work" / name for name in ("regrouped", "regrouped-healed"))
    assert facts_of(exported)["merge"] == "spectral+refine" and facts_of(exported)["refined"]["tokens"] > 0
    assert facts_of(healed)["base_fingerprint"] == facts_of(exported)["base_fingerprint"]
    monkeypatch.chdir(tmp_path)
    told, _ = typed(f"grouper evaluate {healed} --text {job / 'work' / 'other.txt'} --limit 1")
    assert "original" in told[0].split(), "it is found from a third folder, too"


@pytest.fixture(scope="module")
def run(job) -> Path:
    """Of that model, on a text of its own."""
    (job / "mine.txt").write_text(TEXTS["calibration.txt"])
    options = SearchOptions(text=str(job / "mine.txt"), tokens=512, window=64, generations=2, population=8)
    search(job / "models" / "original", job / "run", options)
    return job / "run"


FEW = "--kv-ratio 1/2 --refine-tokens 256"


def test_an_export_is_refined_on_the_runs_own_text(run, job, typed):
    typed(f"grouper export {run} -o own {FEW}")
    _, said = typed(f"grouper export {run} -o given {FEW} --text {job / 'mine.txt'} --tokens 512 --window 64")
    assert not any("not refined" in line for line in said)
    own, given = (facts_of(job / "work" / name) for name in ("own", "given"))
    assert own["merge"] == "spectral+refine" and own["refined"] == given["refined"]
    weights = [(job / "work" / name / "model.safetensors").read_bytes() for name in ("own", "given")]
    assert weights[0] == weights[1], "on the run's own tokens and windows"


def test_the_last_line_says_why_an_export_is_not_refined(run, job, typed):
    mine, kept = job / "mine.txt", (job / "mine.txt").read_text()
    try:
        mine.write_text(kept.replace("e", "a"))
        _, said = typed(f"grouper export {run} -o changed {FEW}")
        assert said[-1] == f"not refined: add --text FILE ({mine} changed since the run was searched)"
        mine.unlink()
        out, said = typed(f"grouper export {run} -o gone {FEW} --json")
        assert said[-1].startswith("not refined: add --text FILE (cannot read the text") and "mine.txt" in said[-1]
        assert said[-1].endswith("; it was merged without text, too)")
        assert said[-1] == f"not refined: {json.loads(chr(10).join(out))['not_refined']}"
    finally:
        mine.write_text(kept)
    _, said = typed(f"grouper export {run} -o bare {FEW} --no-refine")
    assert not any("not refined" in line for line in said)
    for name in ("changed", "gone", "bare"):
        assert facts_of(job / "work" / name)["merge"] == "spectral" and "refined" not in facts_of(job / "work" / name)
    search(job / "models" / "original", job / "guessed", SearchOptions(generations=2, population=8, fitness="weight"))
    _, said = typed(f"grouper export {job / 'guessed'} -o guessed {FEW}")
    assert said[-1] == "not refined: add --text FILE (the run was searched without)"
    _, said = typed(f"grouper export {job / 'guessed'} -o given-now {FEW} --text {mine} --tokens 512 --window 64")
    assert "not refined" not in said[-1] and facts_of(job / "work" / "given-now")["merge"] == "mean+refine"


def test_layouts_reports_and_exports_choose_the_same(run, job, typed):
    measured = evaluate(run, TextSource(str(job / "work" / "other.txt")), window=64, limit=2, layouts="all")
    for ratio in ("0.5", "0.8"):
        (row,) = json.loads("".join(typed(f"grouper layouts {run} --best-under {ratio} --json")[0]))
        assert row["deploy"] == "stock" and row["layout"] == best_within(measured, ratio).layout
        typed(f"grouper export {run} -o chosen --kv-ratio {ratio} --no-refine --overwrite")
        assert facts_of(job / "work" / "chosen")["measured"]["nats per token"][1] == pytest.approx(row["nll"])
        written = HeadLayout.from_json(json.dumps(facts_of(job / "work" / "chosen")["layout"]))
        assert written == RunFolder(run).layout(row["layout"])
    assert row["layout"] == representative(measured)["layout"]
