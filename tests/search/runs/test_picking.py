"""Which layout is exported."""

import pandas as pd
import pytest

from grouper import GrouperError, HeadLayout
from grouper.shares import parsed_share
from search import RunFolder, SearchOptions, pick, search
from search.runs.pareto import ParetoFront, Scored
from search.runs.picking import best_within, parse_ratio, representative


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
        ({"kv_ratio": "0.05"}, "no layout within KV ratio 0.05: the smallest of this run has 12.5%"),
        ({"kv_bytes_per_token": 3}, "no layout within 3 KV bytes per token: the smallest of this run has 192 bytes"),
        ({"layout": 10**6}, "no layout"), ({}, "one of --layout"), ({"layout": 1, "kv_ratio": "1"}, "one of --layout"),
        ({"kv_ratio": "0.25", "deploy": "tpu"}, "unknown deployment class"),
    ):  # fmt: skip
        with pytest.raises(GrouperError, match=message):
            pick(front, "mean", **asked)


def test_layouts_that_engines_can_split(run):
    """Eight KV heads: counts from 7 to 3 do not go with four GPUs, and ragged layouts never do."""
    front = RunFolder(run).front()
    free, split = (pick(front, "mean", kv_ratio="0.7", deploy="any", tp=tp).row for tp in (1, 4))
    assert free["kv_ratio"] > 0.5 == split["kv_ratio"] and set(split["kv_heads"].split(";")) == {"4"}
    assert pick(front, "mean", kv_ratio="3/8", tp=4).row["kv_ratio"] == 0.25
    assert pick(front, "mean", kv_ratio="3/8", tp=3, deploy="any").row["kv_ratio"] == 0.375
    number = pick(front, "mean", kv_ratio="5/8").layout
    assert pick(front, "mean", layout=number, tp=4).layout == number, "a layout named by its number is padded"
    for asked, message in (({"tp": 4, "deploy": "ragged"}, "engines cannot split ragged"), ({"tp": 0}, "from 1 to")):
        with pytest.raises(GrouperError, match=message):
            pick(front, "mean", kv_ratio="1/2", **asked)
    front.table = front.table[front.table["deploy"] == "ragged"]
    with pytest.raises(GrouperError, match=r"split over 4 GPUs: search with `kv_heads_multiple_of=4`"):
        pick(front, "mean", kv_ratio="1/2", tp=4)


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
    assert better.layout == 1 and better.why == "the lowest error of 1 at the largest stock size within KV ratio 0.5"
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
    within = "the largest stock size within 100 KV bytes per token"
    assert found.why == f"the lowest measured nats per token of 1 at {within}"
    assert found.others == "--deploy padded would have nats per token 3.2500 (layout 2) instead of 3.5000"
    errors_alone = [(1, "qcqa-ec", "mean", "stock", 0.5, None), *rows[1:]]
    other = pick(table_of(errors_alone), "mean", kv_ratio="0.5")
    assert other.others is None, "errors and nats cannot be compared"


def sized(*rows: tuple[int, str, str, float, float, float | None], merge: str = "mean") -> ParetoFront:
    """(layout, method, class, KV ratio, error, nats); of 1,000 bytes at most."""
    front = pd.DataFrame(rows, columns=["layout", "method", "deploy", "kv_ratio", "error", "nll"])
    sizes = (1000 * front["kv_ratio"]).round().astype(int)
    return ParetoFront(front.assign(merge=merge, kv_bytes_per_token=sizes, nll=front["nll"].astype(float)))


ORIGINAL = (0, "original", "stock", 1.0, 0.0, None)
STOCK, RAGGED = (1, "qcqa-ec", "stock", 0.5, 0.5, None), (2, "qcqa-ac", "ragged", 0.552, 0.4, None)
PADDED = (3, "qcqa-ac", "padded", 0.54, 0.45, None)


def test_a_budget_is_an_upper_bound_and_stock_comes_first():
    front = sized(ORIGINAL, STOCK, RAGGED, PADDED)
    chosen = {asked: pick(front, "mean", kv_ratio=asked).layout for asked in ("0.5", "50%", "0.55", "0.552", "0.9")}
    assert set(chosen.values()) == {1}
    free = {asked: pick(front, "mean", kv_ratio=asked, deploy="any").layout for asked in ("0.55", "0.552", "0.53")}
    assert free == {"0.55": 3, "0.552": 2, "0.53": 1}, "0.55 is no rounding of 0.552: sizes like it lie anywhere"
    assert [pick(front, "mean", kv_bytes_per_token=n, deploy="any").layout for n in (552, 551, 540, 539)] == [
        2,
        3,
        3,
        1,
    ]
    assert pick(front, "mean", kv_bytes_per_token=999).layout == 1
    gains = pick(front, "mean", kv_ratio="0.552").others
    assert gains == "--deploy ragged would have error 0.4000 at 55.2% (layout 2) instead of 0.5000"
    assert pick(front, "mean", kv_ratio="0.55").others.startswith("--deploy padded would have error 0.4500 at 54.0%")
    assert pick(front, "mean", kv_ratio="0.5").others is None, "nothing else fits"
    assert pick(front, "mean", kv_ratio="1", deploy="padded").layout == 3


def test_where_no_stock_layout_fits_the_nearest_is_named():
    front = sized(ORIGINAL, STOCK, (4, "qcqa-ec", "stock", 0.75, 0.1, None), (5, "qcqa-ac", "ragged", 0.3, 0.9, None))
    found = pick(front, "mean", kv_ratio="0.4")
    assert found.layout == 5
    assert found.why.endswith("1 at the largest size within KV ratio 0.4; the nearest stock layout is 1, of 50.0%")
    assert "nearest" not in pick(front, "mean", kv_ratio="0.4", deploy="any").why, "stock was not wanted"
    for asked, deploy, message in (
        ("0.4", "stock", "no stock layout within KV ratio 0.4: the smallest has 50.0%"),
        ("0.4", "padded", "no padded layout within KV ratio 0.4: there are ragged ones"),
        ("0.2", None, "no layout within KV ratio 0.2: the smallest of this run has 30.0%"),
    ):
        with pytest.raises(GrouperError, match=message):
            pick(front, "mean", kv_ratio=asked, deploy=deploy)
    none = sized(ORIGINAL, (1, "separate", "none", 0.3, 0.1, None))
    with pytest.raises(GrouperError, match="group K and V differently"):
        pick(none, "mean", kv_ratio="1/2")
    ragged_alone = sized(ORIGINAL, RAGGED)
    assert "nearest" not in pick(ragged_alone, "mean", kv_ratio="0.6").why


@pytest.mark.parametrize(
    ("typed", "layout"),
    [("0.33", 1), ("33%", 1), ("1/3", 1), ("0.333", 1), ("33.3%", 1), ("0.3", 2), ("0.332", 2), ("33/100", 2)],
)
def test_a_rounded_ratio_means_the_head_count_that_it_rounds(typed, layout):
    """A third: the original has three heads, of which a baseline keeps one."""
    rows = (ORIGINAL, (9, "neighbour", "stock", 1 / 3, 3.0, None), (1, "qcqa-ac", "padded", 1 / 3, 1.0, None))
    front = sized(*rows, (2, "qcqa-ac", "ragged", 0.25, 2.0, None))
    assert pick(front, "mean", kv_ratio=typed).layout == layout


def test_of_one_size_what_was_measured_comes_before_a_lower_error():
    low, measured = (1, "qcqa-ec", "stock", 0.5, 0.1, None), (2, "qcqa-ec", "stock", 0.5, 0.9, 3.5)
    larger = (3, "qcqa-ac", "ragged", 0.6, 0.05, None)
    front = sized(ORIGINAL, low, measured, larger)
    assert pick(front, "mean", kv_ratio="1/2").layout == 2
    refined = pick(front, "mean+refine", kv_ratio="1/2")
    assert (refined.layout, "measured nats per token (mean) of 2" in refined.why) == (2, True)
    assert pick(front, "spectral", kv_ratio="1/2").layout == 1, "of another merge"
    assert pick(front, "mean", kv_ratio="0.6", deploy="any").layout == 3, "the largest size, measured or not"
    both = front.table.copy()
    both.loc[4] = {**both.loc[1], "merge": "mean+refine", "nll": 9.0}
    assert pick(ParetoFront(both), "mean+refine", kv_ratio="1/2").layout == 1, "as it will be written comes first"
    assert pick(ParetoFront(both), "mean", kv_ratio="1/2").layout == 2


def test_an_encoder_alone_is_bounded_by_its_weights():
    front = sized(ORIGINAL, (1, "qcqa-ac", "ragged", 1.0, 0.5, None), (2, "qcqa-ac", "ragged", 1.0, 0.9, None))
    front.table["weight_ratio"] = [1.0, 0.75, 0.6]
    assert [best_within(front, ratio).layout for ratio in ("0.8", "0.75", "0.7")] == [1, 1, 2]
    assert representative(front)["layout"] == 2, "nothing is as small as half: the smallest"
    front.table["kv_ratio"] = [1.0, 0.5, 0.4]
    assert [best_within(front, ratio).layout for ratio in ("0.8", "0.45")] == [1, 2], "a cache was grouped, too"


def test_a_run_is_represented_by_what_an_export_at_half_takes():
    front = sized(ORIGINAL, STOCK, RAGGED, (3, "qcqa-ec", "stock", 0.25, 0.1, None))
    assert representative(front)["layout"] == best_within(front, "1/2").layout == 1
    assert representative(sized(ORIGINAL, (7, "separate", "none", 0.3, 0.1, None)))["layout"] == 0
