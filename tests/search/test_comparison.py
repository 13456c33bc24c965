"""`grouper compare`: what can be compared, and the numbers by hand."""

import json

import pandas as pd
import pytest

from grouper import GrouperError
from grouper.calibration.source import TextSource
from search import SearchOptions, evaluate, search
from search.comparison import compare, draw

QUICK = {"fitness": "weight", "generations": 3, "population": 16}


@pytest.fixture
def runs(reader, tmp_path):
    for seed in (0, 1):
        search(reader, tmp_path / f"run-{seed}", SearchOptions(seed=seed, **QUICK))
    return [tmp_path / "run-0", tmp_path / "run-1"]


def test_errors_of_one_model_and_fitness(runs, reader, tmp_path):
    found, points = compare(runs)
    assert [one.column for one in found] == ["error", "error"] and found[0].saved == {}
    table = pd.read_csv(runs[0] / "pareto.csv")
    own = table[~table["method"].isin(["neighbour", "random"])]
    half = own[(own["kv_ratio"] - 0.5).abs() < 0.005]
    assert found[0].at["50.0%"] == pytest.approx(half["error"].min()) and found[0].layouts == len(own)
    largest = max(p["value"].max() for p in points.values())
    best = own.groupby("kv_ratio")["error"].min().cummin()
    ratios = [*best.index, 1.0]
    area = sum((b - a) * (largest - e) for a, b, e in zip(ratios, ratios[1:], best))  # steps down to the right
    assert found[0].hypervolume == pytest.approx(area / largest)
    search(reader, tmp_path / "other", SearchOptions(**{**QUICK, "fitness": "spectral"}))
    with pytest.raises(GrouperError, match="same --text"):
        compare([runs[0], tmp_path / "other"])


def test_losses_where_all_were_measured_on_one_text(runs, text, tmp_path):
    for run in runs:
        table = pd.read_csv(run / "pareto.csv")
        some = table.loc[~table["method"].isin(["neighbour", "random"]), "layout"].iloc[::8][:4]
        evaluate(run, TextSource(str(text)), window=64, limit=4, layouts=",".join(map(str, some)))
    found, points = compare(runs)
    assert [one.column for one in found] == ["over", "over"] and found[0].layouts == len(some)
    table = pd.read_csv(runs[0] / "pareto.csv").dropna(subset="nll")
    over = table["nll"] - table.loc[table["method"] == "original", "nll"].iloc[0]
    within = table.loc[over <= 0.2, "kv_ratio"]
    assert found[0].saved["+0.2"] == pytest.approx(1 - within.min())
    draw(found, points, tmp_path / "both.svg")
    draw(found, points, tmp_path / "both.png")
    assert (tmp_path / "both.svg").stat().st_size > 1000 and (tmp_path / "both.png").read_bytes()[:4] == b"\x89PNG"
    facts = json.loads((runs[1] / "evaluation.json").read_text())
    (runs[1] / "evaluation.json").write_text(json.dumps({**facts, "digest": "another"}))
    assert compare(runs)[0][0].column == "error", "another text: what the fitness says is left"


def test_two_runs_at_least(runs):
    for given in ([runs[0]], [runs[0], runs[0]]):
        with pytest.raises(GrouperError, match="at least two runs"):
            compare(given)
