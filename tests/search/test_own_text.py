"""`--text self` in searches, exports and training: written first, kept in the run, gone on with."""

import json
import shutil

import pytest

from grouper import GrouperError, UptrainOptions
from grouper.calibration import own_answers
from grouper.calibration.calibration import Calibration
from grouper.calibration.own_answers import Writer
from grouper.calibration.source import TextSource
from grouper.machine import Machine
from grouper.refinement.options import RefineOptions
from grouper.uptraining.uptrain import uptrain_model
from search import SearchOptions, Selection, export_from_run, search
from search.one_call import regroup_into
from search.runs.folder import RunFolder

ASKED = SearchOptions(generations=2, population=8, text="self", tokens=128, window=32)
SHORT = RefineOptions(tokens=256)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(own_answers, "LONGEST", 24)
    monkeypatch.setattr("search.own_text.RefineOptions", lambda: SHORT)


@pytest.fixture
def run(reader, tmp_path):
    search(reader, tmp_path / "run", ASKED, jobs=1)
    return tmp_path / "run"


def test_answers_are_kept_in_the_run_and_serve_the_export(run, reader, tmp_path, monkeypatch):
    (file,) = (run / "answers").iterdir()
    facts = json.loads((run / "run.json").read_text())
    assert facts["text"] == str(file) and list(json.loads((run / "digests" / f"{file.stem}.json").read_text())["files"])
    assert sum(json.loads(line)["tokens"] for line in file.read_text().splitlines()) >= 256
    monkeypatch.setattr(Writer, "open", None)  # nothing is written again
    told = []
    search(reader, run, ASKED, jobs=1, machine=Machine("cpu", tell=told.append))
    assert not any("answers" in line for line in told)
    again = Calibration(TextSource("self"), 128, 32)
    for number, calibration in enumerate((None, again)):
        done = export_from_run(run, tmp_path / f"out{number}", Selection(kv_ratio="1/2"), calibration, SHORT)
        assert done.not_refined is None
    first, second = ((tmp_path / f"out{number}" / "model.safetensors").read_bytes() for number in range(2))
    assert first == second


def test_a_killed_search_goes_on(run, reader, tmp_path):
    (file,) = (run / "answers").iterdir()
    begun = tmp_path / "begun"
    (begun / "answers").mkdir(parents=True)
    lines = file.read_text().splitlines(keepends=True)
    (begun / "answers" / file.name).write_text("".join(lines[:8]))  # no run.json yet
    search(reader, begun, ASKED, jobs=1)
    assert (begun / "answers" / file.name).read_bytes() == file.read_bytes()
    assert (begun / "pareto.csv").read_bytes() == (run / "pareto.csv").read_bytes()


def test_a_moved_run_finds_its_answers(run, reader, tmp_path):
    shutil.move(run, tmp_path / "moved")
    settings = RunFolder.open(tmp_path / "moved").settings
    assert settings.options.text == str(next((tmp_path / "moved" / "answers").iterdir()))
    search(reader, tmp_path / "moved", ASKED, jobs=1)


def test_changed_answers_and_other_prompts_are_refused(run, reader, tmp_path):
    (file,) = (run / "answers").iterdir()
    (tmp_path / "p.txt").write_text("One?\nTwo?\n")
    other = SearchOptions(**{**vars(ASKED), "text": f"self:{tmp_path / 'p.txt'}"})
    with pytest.raises(GrouperError, match="holds a run with another text"):
        search(reader, run, other, jobs=1)
    assert [*(run / "answers").iterdir()] == [file]
    search(reader, run, other, jobs=1, overwrite=True)
    (new,) = (run / "answers").iterdir()
    assert new != file and (run / "digests" / f"{new.stem}.json").is_file()
    new.write_text(new.read_text().replace("One", "Uno"))
    with pytest.raises(GrouperError, match="it is not what Grouper wrote"):
        search(reader, run, other, jobs=1)


def test_one_call_and_training_on_own_text(reader, tmp_path):
    done = regroup_into(reader, tmp_path / "out", options=ASKED, refinement=SHORT)
    assert done.exported.not_refined is None and "2 MiB" in done.not_measured
    told, healing = [], UptrainOptions(tokens=512, step_tokens=128, window=32, lr=1e-4, validate=2)
    machine = Machine("cpu", tell=told.append)
    uptrain_model(tmp_path / "out", tmp_path / "healed", TextSource("self"), healing, base=str(reader), machine=machine)
    assert "answers 64 prompts in turns, 512 tokens" in told[0] and not (tmp_path / "healed.uptrain").exists()
