"""`grouper regroup` in a process of its own: one command from a model to a smaller one that was measured."""

import json
import signal
from pathlib import Path

import pytest
from commands import grouper
from typer.testing import CliRunner

from grouper import GrouperError, TextSource
from grouper.calibration.source import DATA
from grouper.export.hub import Destination
from search.commands.application import app
from search.evaluation.models import evaluate_model

QUICK = (
    "--tokens", 512, "--window", 64, "--refine-tokens", 256, "--population", 8, "--generations", 2, "--jobs", 1,
    "--limit", 4,
)  # fmt: skip


@pytest.fixture(scope="module")
def long_text(tmp_path_factory) -> Path:
    """Just long enough for stretches to be set aside."""
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text("".join(file.read_text() for file in sorted(DATA.glob("*.txt"))))
    return path


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "grouper.json").read_text())


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_model_comes_out_that_was_refined_tested_and_measured(reader, long_text, tmp_path):
    out = tmp_path / "out"
    done = grouper("regroup", reader, "-o", out, "--kv-ratio", "1/2", "--text", long_text, *QUICK)
    assert done.returncode == 0, done.stderr
    facts = facts_of(out)
    assert facts["merge"] == "spectral+refine" and facts["report"]["deploy"] == "stock"
    measured = facts["measured"]
    beside = TextSource(str(long_text), part="judged")
    again = evaluate_model(out, beside, base=str(reader), window=64, limit=4)
    assert measured["nats per token"] == pytest.approx([again.original["nll"], again.values["nll"]], rel=1e-4)
    assert measured["KL to the original"][1] == pytest.approx(again.values["kl"], rel=1e-2)
    assert "| nats per token |" in (out / "README.md").read_text()
    assert (out / "README.md").read_text().count("grouper regroup") == 1, "one command makes it again"
    told = f"measured before and after on stretches of {long_text} that nothing is learnt from, 4 windows at most"
    assert told in done.stderr.splitlines()
    assert "self-test passed" in done.stdout and "nats per token " in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    assert [line.split()[2] for line in lines] == ["uptrain", "layouts"], "it need not be evaluated any more"
    rows = json.loads(grouper("layouts", f"{out}.run", "--best-under", "1/2", "--json").stdout)
    assert rows[0]["nll"] == pytest.approx(measured["nats per token"][1]), "and the run knows it"
    other = grouper("export", f"{out}.run", "-o", tmp_path / "other", "--kv-ratio", "1/4", "--no-refine")
    assert other.returncode == 0 and (tmp_path / "other" / "config.json").is_file(), other.stderr


def test_of_a_short_text_nothing_is_measured_unless_another_one_is_given(reader, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text((DATA / "addresses-2017-on.txt").read_text()[:40_000])
    done = grouper("regroup", reader, "-o", tmp_path / "out", "--text", text, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["measured"] == {} == facts_of(tmp_path / "out")["measured"]
    assert said["kv_bytes_per_token"][0] == 2 * said["kv_bytes_per_token"][1], "half of the cache unless told"
    why = f"nothing is measured: {text} is below 2 MiB, so that none of it is set aside; give --evaluation FILE"
    assert said["not_measured"] == why and done.stderr.splitlines().count(why) == 1
    given = ("--evaluation", other, "--format", "gguf", "--overwrite")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.run" / "layers").glob("??.csv")}
    done = grouper("regroup", reader, "-o", tmp_path / "out", "--text", text, *QUICK, *given)
    assert done.returncode == 0, done.stderr
    assert facts_of(tmp_path / "out")["measured"]["nats per token"][1] > 0 and [*(tmp_path / "out").glob("*.gguf")]
    assert {p: p.stat().st_mtime_ns for p in before} == before != {}, "what was searched is not searched again"


def test_a_killed_one_goes_on_to_the_same_weights(reader, long_text, tmp_path):
    words = ("regroup", str(reader), "--text", str(long_text), *map(str, QUICK))
    assert grouper(*words, "-o", tmp_path / "whole").returncode == 0
    for sign in ("out.run/layers/00.csv", "out.refine/*/layer-000.safetensors"):
        killed = grouper(*words, "-o", tmp_path / "out", killed_at=tmp_path / sign)
        assert killed.returncode == -signal.SIGKILL
        assert [*tmp_path.glob(sign)] and not (tmp_path / "out").exists()
    done = grouper(*words, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")
    assert facts_of(tmp_path / "out")["measured"] == facts_of(tmp_path / "whole")["measured"] != {}
    for name in ("pareto.csv", "layers/00.csv", "refined.csv"):
        assert (tmp_path / "out.run" / name).read_bytes() == (tmp_path / "whole.run" / name).read_bytes(), name
    assert not (tmp_path / "out.refine").exists()


def test_what_cannot_work_is_said_before_there_is_a_search(reader, text, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    for words, why in (
        (("-o", tmp_path / "mine"), "was not written by Grouper"),
        (("-o", tmp_path / "out", "--format", "gguff"), "gguff"),
        (("-o", tmp_path / "out", "--kv-ratio", "2"), "KV ratio"),
        (("-o", tmp_path / "out", "--kv-ratio", "1/2", "--layout", 3), "one of --layout"),
        (("-o", tmp_path / "out", "--merge", "men"), "did you mean mean"),
        (("-o", tmp_path / "out", "--evaluation", "nowhere.txt"), "cannot read the text nowhere.txt"),
        (("-o", tmp_path / "out", "--evaluation", text), "is the text to learn from"),
    ):
        done = grouper("regroup", reader, "--text", text, *QUICK, *words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and why in done.stderr, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


def test_without_text_it_says_what_that_costs(reader, tmp_path):
    done = grouper("regroup", reader, "-o", tmp_path / "out", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "nothing is measured: there is no text" in done.stderr and "searched without text" in done.stderr
    assert done.stderr.splitlines()[-1] == "not refined: add --text FILE (the run was searched without)"
    bare = grouper("regroup", reader, "-o", tmp_path / "bare", *QUICK, "--no-refine")
    assert "not refined" not in bare.stderr and weights_of(tmp_path / "bare") == weights_of(tmp_path / "out")


def test_the_models_revision_and_the_repositorys_are_two(monkeypatch):
    asked = {}

    def stop(*given, **named):
        asked.update(destination=given[6], revision=named["revision"])
        raise GrouperError("enough")

    monkeypatch.setattr("search.one_call.regroup_into", stop)
    words = ["regroup", "a/b", "-o", "out", "--revision", "v1", "--push-to-hub", "c/d", "--push-revision", "v2"]
    assert isinstance(CliRunner().invoke(app, words).exception, GrouperError)
    assert isinstance(asked["destination"], Destination)
    assert asked["revision"] == "v1" and asked["destination"].revision == "v2"
