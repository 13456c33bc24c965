"""Runs, exports and half-finished work of an older version (bench/keep_work.py wrote them) open, go on and are used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import cli

KEPT = sorted(p.parent for p in (Path(__file__).parent / "data").glob("*/measured.json"))  # a folder a version
TEXT = ("--text", "calibration.txt", "--window", 64)
CALIBRATED = (*TEXT, "--tokens", 65536)
REFINED = (*CALIBRATED, "--refine", "--refine-tokens", 65536, "--max-padding", "900%")
ALIKE = ("--long-share", 0)  # that version had no long windows
SEARCHED = (*CALIBRATED, "--population", 8, "--generations", 2, "--jobs", 1)
OTHER = ("--text", "other.txt", "--window", 64)
CLASSES = ("stock", "padded", "ragged")


@pytest.fixture(params=KEPT, ids=lambda folder: folder.name)
def kept(request, tmp_path, monkeypatch):
    """A copy, of which run.json says where it is, as people correct it who moved a folder."""
    place = tmp_path / "work"
    shutil.copytree(request.param, place)
    for settings in place.glob("*/run.json"):
        settings.write_text(settings.read_text().replace("MODELS", str(place)))
    monkeypatch.chdir(place)
    return place


def grouper(*arguments: object) -> str:
    """stdout of a command that goes through."""
    done = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert done.exit_code == 0, (done.exception, done.stderr)
    return done.stdout


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "grouper.json").read_text())


def layout_of(folder: Path, run: Path) -> int:
    """The number in its run of an exported folder's layout."""
    same = (p for p in (run / "layouts").glob("*.json") if json.loads(p.read_text()) == facts_of(folder)["layout"])
    return int(next(same).stem)


def check_weights(ours: Path, theirs: Path) -> None:
    """Nearly the same, for machines round differently."""
    mine, known = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert mine.keys() == known.keys()
    for name, tensor in known.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-3, msg=name)


def check_tables(ours: Path, theirs: Path) -> None:
    """The older one's rows and columns."""
    mine, known = (pd.read_csv(path) for path in (ours, theirs))
    assert len(mine) == len(known) and set(known) <= set(mine)
    pd.testing.assert_frame_equal(mine[list(known)], known, rtol=1e-5, check_dtype=False)


@pytest.mark.parametrize("model, run", [("model", "run"), ("encoder", "encoder-run")])
def test_a_finished_run_is_not_searched_again(kept, model, run):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in kept.glob(f"{run}/layers/??.csv")}
    table = kept / "searched.csv"
    shutil.copyfile(kept / run / "pareto.csv", table)
    grouper("search", model, "-o", run, *SEARCHED[:1], kept / "calibration.txt", *SEARCHED[2:])
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before and len(before) == 2
    check_tables(kept / run / "pareto.csv", table)


def test_a_killed_search_goes_on_to_the_same_tables(kept):
    copy = shutil.copytree(kept / "run", kept / "killed")
    for path in (*copy.glob("layers/01*"), *copy.glob("layouts/*"), copy / "pareto.csv", copy / "pareto.svg"):
        path.unlink()
    first = copy / "layers" / "00.csv"
    lines = first.read_text().splitlines(keepends=True)
    first.write_text("".join([*lines, lines[-1]]))  # a row twice: were the layer searched again, it would not be there
    grouper("search", "model", "-o", "killed", *SEARCHED)
    assert first.read_text().splitlines() == [line.rstrip("\n") for line in [*lines, lines[-1]]]
    check_tables(copy / "layers" / "01.csv", kept / "run" / "layers" / "01.csv")
    searched = ["layout", "method", "merge", "kv_ratio", "kv_bytes_per_token", "kv_heads", "error", "deploy"]
    mine, known = (pd.read_csv(kept / run / "pareto.csv")[searched] for run in ("killed", "run"))
    pd.testing.assert_frame_equal(mine, known, rtol=1e-5)
    for path in (kept / "run" / "layouts").glob("*.json"):
        assert json.loads((copy / "layouts" / path.name).read_text()) == json.loads(path.read_text())


def test_a_run_is_measured_further(kept):
    table = pd.read_csv(kept / "run" / "pareto.csv").set_index("layout")
    new = int(table.index[table["nll"].isna()][0])
    table.loc[0, "nll"] = 4.0
    table.reset_index().to_csv(kept / "run" / "pareto.csv", index=False)
    grouper("evaluate", "run", *OTHER, "--layouts", f"0,{new}")
    after = pd.read_csv(kept / "run" / "pareto.csv").set_index("layout")
    assert after.loc[0, "nll"] == 4.0, "what was measured is not measured again"
    assert after.loc[new, "nll"] == pytest.approx(table["nll"].iloc[1:].mean(), rel=0.1)
    pd.testing.assert_frame_equal(after.drop(new)[["nll", "kl"]], table.drop(new)[["nll", "kl"]])


def test_a_run_is_reported_and_listed(kept):
    rows = json.loads(grouper("layouts", "run", "--all", "--json"))
    assert [row["layout"] for row in rows if row["method"] == "original"] == [0]
    grouper("report", "run", "-o", "page.html")
    assert (kept / "page.html").stat().st_size > 100_000


@pytest.mark.parametrize("name", [*CLASSES, "encoder-ragged"])
def test_a_run_is_exported_to_the_same_weights(kept, name):
    run = kept / ("encoder-run" if name.startswith("encoder") else "run")
    grouper("export", run.name, "-o", "again", "--layout", layout_of(kept / name, run), *REFINED, *ALIKE)
    check_weights(kept / "again", kept / name)
    mine, known = facts_of(kept / "again"), facts_of(kept / name)
    assert mine["report"]["kv_bytes_per_token"] == known["report"]["kv_bytes_per_token"]
    assert np.allclose(mine["refined"]["errors"], known["refined"]["errors"], rtol=1e-2)


@pytest.mark.parametrize("name", [*CLASSES, "encoder-ragged"])
def test_an_export_is_measured_as_it_was(kept, name):
    known = json.loads((kept / "measured.json").read_text())[name]
    base = "encoder" if name.startswith("encoder") else "model"
    found = json.loads(grouper("evaluate", name, "--base", base, *OTHER, "--json"))
    for key in ("values", "original"):
        assert known[key].keys() <= found[key].keys() and known[key]
        assert {n: found[key][n] for n in known[key]} == pytest.approx(known[key], rel=5e-3, abs=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_an_export_is_trained(kept, name):
    budget = ("--tokens", 512, "--step-tokens", 128, "--micro-tokens", 128)
    grouper("uptrain", name, "-o", "trained", "--base", "model", *TEXT, *budget)
    facts, known = facts_of(kept / "trained"), facts_of(kept / name)
    assert facts["layout"] == known["layout"] and facts["deploy"] == name and facts["uptrained"]["steps"] == 4


def test_a_half_finished_refinement_goes_on(kept):
    """From its first layer, of which a mark in the file tells; to what was refined in one go."""
    (half,) = (kept / "half.refine").rglob("layer-000.safetensors")
    with safe_open(half, framework="pt") as file:
        facts = file.metadata()
    save_file(load_file(half), half, metadata={**facts, "before": "123.0"})
    grouper("export", "run", "-o", "half", "--layout", layout_of(kept / "stock", kept / "run"), *REFINED)
    errors, known = (facts_of(kept / name)["refined"]["errors"] for name in ("half", "stock"))
    assert errors[0] == [123.0, known[0][1]] and np.allclose(errors[1], known[1], rtol=1e-2)
    check_weights(kept / "half", kept / "stock")
    assert not (kept / "half.refine").exists()


def test_a_half_finished_training_goes_on(kept):
    """From the step that it had come to, with its log."""
    (log,) = (kept / "healed.uptrain").rglob("log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    marked = [{**line, "tokens_per_second": 123} if "loss" in line else line for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in marked))
    training = ("--tokens", 8192, "--step-tokens", 256, "--micro-tokens", 128, "--lr", 1e-3)
    grouper("uptrain", "stock", "-o", "healed", *TEXT, *training)
    written = [json.loads(line) for line in (kept / "healed" / "uptraining.jsonl").read_text().splitlines()]
    reached = marked[-1]["step"]
    assert written[: len(marked)] == marked and 0 < reached < 32
    assert min(line["step"] for line in written[len(marked) :]) > reached and written[-1]["step"] == 32
    assert facts_of(kept / "healed")["uptrained"]["steps"] == 32 and not (kept / "healed.uptrain").exists()
