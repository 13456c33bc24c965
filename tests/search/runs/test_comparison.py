"""`grouper compare`: what can be compared, and the numbers by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up_runs import OTHER, SEARCHED, made_up_run, scored

from grouper import GrouperError
from grouper.calibration.source import TextSource
from search import RunFolder, SearchOptions, evaluate, search
from search.runs.comparison import compare, draw

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
    with pytest.raises(GrouperError, match=r"evaluation.json is damaged \(it is not what Grouper wrote"):
        compare(runs)
    (runs[1] / "digests" / "evaluation.json").unlink()
    assert compare(runs)[0][0].column == "error", "another text: what the fitness says is left"


def test_two_runs_at_least(runs):
    for given in ([runs[0]], [runs[0], runs[0]]):
        with pytest.raises(GrouperError, match="at least two runs"):
            compare(given)


def test_a_comparison_by_hand(tmp_path):
    """Losses over the original: 0.75 and 0.5 at 2 of 4 heads, 3/16 at 3 of 4; and exactly 0.02 at 2 of 4."""
    rows = scored(*SEARCHED[:2], ("qcqa-ac", 0.7, OTHER), ("qcqa-ac", 0.1, [0, 1, 2, 2]), SEARCHED[3])
    nll = [2.0, 2.75, 2.5, 2.1875, 2.0]
    fewer = scored(*SEARCHED)
    runs = [
        made_up_run(tmp_path / "a", rows, nll=nll), made_up_run(tmp_path / "b", fewer, nll=[0.0, 0.02, np.nan, 9.0]),
    ]  # fmt: skip
    for run in runs:
        (run.path / "evaluation.json").write_text(json.dumps({"digest": "d", "text": "t"}))
    paths = [run.path for run in runs]
    (a, b), points = compare(paths)
    assert (a.column, a.layouts, b.layouts, a.methods, a.model) == ("over", 4, 2, "qcqa-ac,qcqa-ec", "tiny")
    assert a.at == {"50.0%": pytest.approx(0.5), "25.0%": None, "12.5%": None} and b.at["50.0%"] == pytest.approx(0.02)
    assert a.saved == {"+0.02": 0.0, "+0.05": 0.0, "+0.2": pytest.approx(0.25)}
    assert {k: pytest.approx(v) for k, v in b.saved.items()} == dict.fromkeys(("+0.02", "+0.05", "+0.2"), 0.5)
    # up to 0.75: from 2/4 on 0.75 - 0.5, from 3/4 on 0.75 - 3/16; and from 2/4 on 0.75 - 0.02
    assert a.hypervolume == pytest.approx((0.25 * 0.25 + 0.25 * 0.5625) / 0.75)
    assert b.hypervolume == pytest.approx(0.5 * 0.73 / 0.75)
    assert points[str(paths[0])]["layout"].tolist() == [2, 1, 3, 0]


def test_less_than_the_originals_loss_counts_as_none_and_eighths_are_told(tmp_path):
    eight = scored(("original", 0.0, range(8)), ("a", 1.0, [0] * 8), ("a", 0.5, [0, 1] * 4), query_heads=8)
    for name in "ab":
        run = made_up_run(tmp_path / name, eight, nll=[2.0, 2.125, 1.5])
        (run.path / "evaluation.json").write_text(json.dumps({"digest": "d"}))
    found = compare([tmp_path / "a", tmp_path / "b"])[0][0]
    assert (found.at["12.5%"], found.at["25.0%"]) == (0.125, -0.5) and found.saved["+0.02"] == 0.75
    assert found.hypervolume == pytest.approx(0.75), "all of the area from a quarter on"


@pytest.mark.parametrize(
    ("fingerprints", "facts", "second", "column"),
    [
        ("ff", ({"digest": "d", "text": "t"}, {"digest": "e", "text": "t"}), {}, "error"),
        ("fg", ({"digest": "d", "text": "t"}, {"digest": "e", "text": "t"}), {}, "over"),  # other tokens, the same text
        ("fg", ({"digest": "d", "text": "t"}, {"digest": "d", "text": "u"}), {}, None),
        ("ff", ({"digest": "d"}, {"digest": "d"}), {"alone": True}, "error"),  # only its original was measured
        ("ff", ({"digest": "d"}, {"digest": "e"}), {"fitness": "weight"}, None),
        ("ff", ({"digest": "d"}, {"digest": "e"}), {"sensitivity": True}, None),  # errors in nats
        ("fg", ({}, {}), {}, None),
    ],
)
def test_what_can_be_compared(tmp_path, fingerprints, facts, second, column):
    second = dict(second)
    nll = [2.0, np.nan, np.nan, np.nan] if second.pop("alone", False) else [2.0, 2.5, 3.0, 3.0]
    made_up_run(tmp_path / "0", scored(*SEARCHED), fingerprint=fingerprints[0], nll=[2.0, 2.5, 3.0, 3.0])
    made_up_run(tmp_path / "1", scored(*SEARCHED), SearchOptions(**second), fingerprint=fingerprints[1], nll=nll)
    for number, made in enumerate(facts):
        (tmp_path / str(number) / "evaluation.json").write_text(json.dumps(made) if made else "{}")
        if not made:
            front = RunFolder(tmp_path / str(number)).front()
            front.table["nll"] = np.nan
            front.write(tmp_path / str(number) / "pareto.csv")
    runs = [tmp_path / "0", tmp_path / "1"]
    if column is None:
        with pytest.raises(GrouperError, match="neither nats on one text"):
            compare(runs)
    else:
        assert compare(runs)[0][0].column == column
