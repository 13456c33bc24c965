"""Which layout is exported."""

import pandas as pd
import pytest

from grouper import GrouperError, HeadLayout
from search import RunFolder, SearchOptions, pick, search
from search.pareto import ParetoFront, Scored
from search.picking import parse_ratio
from search.shares import parsed_share


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("picking") / "run"
    search(models("llama"), folder, SearchOptions(fitness="weight", generations=4, population=24))
    return folder


def test_picking(run):
    front = RunFolder(run).front()
    stock = pick(front, "mean", kv_ratio="0.25")
    free = pick(front, "mean", kv_ratio="0.25", deploy="any")
    assert stock.row["deploy"] == "stock" and free.row["error"] <= stock.row["error"]
    assert (stock.others is not None) == (free.row["error"] < stock.row["error"])
    assert (
        pick(front, "mean", kv_bytes_per_token=int(free.row["kv_bytes_per_token"]), deploy="any").row["error"]
        <= free.row["error"]
    )
    assert pick(front, "mean", kv_ratio="1/3", deploy="ragged").row["kv_ratio"] == pytest.approx(1 / 3)
    baselines = set(front.table.loc[front.table["method"].isin(["neighbour", "random", "original"]), "layout"])
    assert not {p.layout for p in (stock, free)} & baselines
    front.table.loc[front.table["layout"] == free.layout, "nll"] = 9.0
    front.table.loc[front.table["layout"] == stock.layout, "nll"] = 5.0
    assert pick(front, "mean", kv_ratio="0.25", deploy="any").layout == stock.layout, "measured nats decide over errors"
    for asked, message in (
        ({"kv_ratio": "2"}, "out of range"), ({"kv_ratio": "0"}, "out of range"), ({"kv_ratio": "half"},
        "expected a number, a fraction"),
        ({"kv_ratio": "0.05"}, "below one head a layer"), ({"kv_ratio": "0.98"}, "the nearest are"),
        ({"kv_bytes_per_token": 3}, "the smallest takes"),
        ({"layout": 10**6}, "no layout"), ({}, "one of --layout"), ({"layout": 1, "kv_ratio": "1"}, "one of --layout"),
        ({"kv_ratio": "0.25", "deploy": "tpu"}, "unknown deployment class"),
    ):  # fmt: skip
        with pytest.raises(GrouperError, match=message):
            pick(front, "mean", **asked)


def test_a_baseline_is_not_picked_though_it_be_the_best():
    """Neither by error nor by measured nats, but by its number it is."""
    rows = [("original", [0, 1, 2, 3], 0.0), ("neighbour", [0, 0, 1, 1], 1.0), ("random", [0, 1, 1, 0], 2.0)]
    rows += [("qcqa-ec", [0, 1, 0, 1], 3.0)]
    front = ParetoFront.of([Scored(HeadLayout.from_labels([r], 4, 8), m, e, "mean") for m, r, e in rows], "bfloat16")
    assert pick(front, "mean", kv_ratio="1/2").layout == 3
    assert pick(front, "mean", kv_bytes_per_token=64).layout == 3
    front.table["nll"] = [3.0, 3.1, 3.2, 9.0]
    assert pick(front, "mean", kv_ratio="1/2").layout == 3 and pick(front, "mean", layout=1).layout == 1


@pytest.mark.parametrize("text", ["1/2", "0.5", "50%", " 50 % ", "5e-1"])
def test_ratios_are_numbers_fractions_or_percentages(text):
    assert parse_ratio(text) == 0.5


@pytest.mark.parametrize("text", ["half", "", "%", "1/0", "0", "-1", "1.01", "101%", "nan", "inf", "1/2/3"])
def test_what_is_no_ratio_is_refused(text):
    with pytest.raises(GrouperError, match="KV ratio"):
        parse_ratio(text)


def test_padding_may_be_nothing_or_more_than_all():
    assert [parsed_share(text, "--max-padding") for text in ("0", "10%", "0.10", "900%")] == [0, 0.1, 0.1, 9]
    with pytest.raises(GrouperError, match="--max-padding 10: is 10% meant"):
        parsed_share("10", "--max-padding")
    with pytest.raises(GrouperError, match="--max-padding -1 is out of range: expected 0 or more"):
        parsed_share("-1", "--max-padding")


def test_only_what_was_measured_for_this_merge_counts():
    rows = (("original", [0, 1, 2, 3], 0.0), ("a", [0, 0, 1, 1], 1.0), ("b", [0, 1, 0, 1], 2.0))
    scored = [Scored(HeadLayout.from_labels([row], 4, 8), name, error, "mean") for name, row, error in rows]
    front = ParetoFront.of(scored, "bfloat16")
    front.table.loc[[1, 2], "nll"] = [3.0, 2.0]
    front.table.loc[2, "merge"] = "spectral"
    assert pick(front, "mean", kv_ratio="1/2").layout == 1


def table_of(rows: list[tuple[int, str, str, str, float, float | None]]) -> ParetoFront:
    """(layout, method, merge, class, error, nats) at half the KV cache."""
    front = pd.DataFrame(rows, columns=["layout", "method", "merge", "deploy", "error", "nll"])
    return ParetoFront(front.assign(kv_ratio=0.5, kv_bytes_per_token=100, nll=front["nll"].astype(float)))


def test_what_another_class_would_gain_is_said_in_numbers():
    rows = [(1, "qcqa-ec", "mean", "stock", 0.5, None), (2, "qcqa-ac", "mean", "ragged", 0.25, None)]
    better = pick(table_of(rows), "mean", kv_ratio="0.5")
    assert better.layout == 1 and better.why == "the lowest error of 1 at KV ratio 0.5"
    assert better.others == "--deploy ragged would have error 0.2500 (layout 2) instead of 0.5000"
    alike = [rows[0], (2, "qcqa-ac", "mean", "ragged", 0.5, None)]
    assert pick(table_of(alike), "mean", kv_ratio="0.5").others is None, "no gain, no word"
    apart = [rows[0], (3, "separate", "mean", "none", 0.1, None)]
    assert pick(table_of(apart), "mean", kv_ratio="0.5").others is None, "what cannot be exported gains nothing"


def test_gains_are_of_the_merge_that_is_exported_and_in_what_was_measured():
    rows = [
        (1, "qcqa-ec", "mean", "stock", 0.5, 3.5), (2, "qcqa-ac", "mean", "padded", 0.6, 3.25),
        (2, "qcqa-ac", "spectral", "padded", 0.6, 1.0),
    ]  # fmt: skip
    found = pick(table_of(rows), "mean", kv_bytes_per_token=100)
    assert found.why == "the lowest measured nats per token of 1 at 100 KV bytes per token"
    assert found.others == "--deploy padded would have nats per token 3.2500 (layout 2) instead of 3.5000"
    errors_alone = [(1, "qcqa-ec", "mean", "stock", 0.5, None), *rows[1:]]
    other = pick(table_of(errors_alone), "mean", kv_ratio="0.5")
    assert other.others is None, "errors and nats cannot be compared"
