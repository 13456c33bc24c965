"""The front and its CSV by hand."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up_runs import ONE, OWN, SEARCHED, TWO, of_encoder, scored

from grouper import GrouperError, HeadLayout
from search.runs.pareto import COLUMNS, ParetoFront, Scored


def front_of(*rows: tuple[int, float, str]) -> ParetoFront:
    """(KV heads of 4, error, method) of a model of one layer, the original first."""
    layouts = [HeadLayout.from_labels([np.arange(4) % k], 4, 8) for k, _, _ in rows]
    return ParetoFront.of([Scored(layout, m, e, "mean") for layout, (_, e, m) in zip(layouts, rows)], "bfloat16")


@pytest.fixture
def front() -> ParetoFront:
    return front_of((4, 0.0, "original"), (3, 2.0, "a"), (2, 1.0, "b"), (1, 5.0, "c"), (1, 4.0, "d"))


def test_the_front_is_what_nothing_beats_in_both(front):
    assert front.table["on_front"].tolist() == [1, 0, 1, 0, 1]
    assert front.front()["method"].tolist() == ["d", "b", "original"], "by ascending bytes"
    assert front.table["kv_bytes_per_token"].tolist() == [128, 96, 64, 32, 32] and front.own_merge == "mean"


@pytest.mark.filterwarnings("error")  # pandas deprecates the option that its older releases need
def test_floats_are_read_to_the_bit(tmp_path):
    errors = np.random.default_rng(0).standard_exponential(400)
    front = front_of(*[(1 + i % 4, error, "a") for i, error in enumerate(errors)])
    front.write(tmp_path / "pareto.csv")
    assert ParetoFront.read(tmp_path / "pareto.csv").table["error"].tolist() == front.table["error"].tolist()


def test_the_measured_front_is_of_nats_where_fewer_are_better(front):
    front.table.loc[[0, 1, 2, 4], "nll"] = [3.0, 3.5, 3.6, 3.4]
    front.mark()
    assert front.table["on_nll_front"].fillna(-1).tolist() == [1, 0, 0, -1, 1]


def test_hypervolume_is_the_dominated_area(front):
    """Up to (1, 5): from 1/4 on, 5 - 4 = 1 over a quarter; from 1/2 on, 5 - 1 = 4 over a half."""
    assert front.hypervolume() == pytest.approx(0.25 * 1 + 0.5 * 4)
    assert front.hypervolume(reference=(1.0, 10.0)) == pytest.approx(0.25 * 6 + 0.5 * 9)


def test_a_front_survives_its_csv(front, tmp_path):
    front.table.loc[1, "also_found_by"] = "x;y"
    front.write(tmp_path / "pareto.csv")
    again = ParetoFront.read(tmp_path / "pareto.csv")
    assert list(again.table.columns) == COLUMNS and again.same_layouts(front)
    assert again.found_by("y")["method"].tolist() == ["a"] and again.found_by("b", "x")["method"].tolist() == ["a", "b"]
    pd.read_csv(tmp_path / "pareto.csv").drop(columns="also_found_by").to_csv(tmp_path / "older.csv", index=False)
    assert ParetoFront.read(tmp_path / "older.csv").table["also_found_by"].tolist() == [""] * 5
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(GrouperError, match=r"bad.csv is damaged \(row 1: layout is missing\): delete it"):
        ParetoFront.read(tmp_path / "bad.csv")


def test_equal_points_are_both_on_the_front_and_rows_of_other_merges_change_no_layout():
    rows = (("original", [0, 1, 2, 3], 0.0), ("a", [0, 0, 1, 1], 1.0), ("b", [0, 1, 0, 1], 1.0))
    scored = [Scored(HeadLayout.from_labels([row], 4, 8), name, error, "mean") for name, row, error in rows]
    front = ParetoFront.of(scored, "bfloat16")
    assert front.table["on_front"].tolist() == [1, 1, 1]
    other = front.table.iloc[1:].assign(merge="spectral", nll=3.0)
    assert ParetoFront(pd.concat([front.table, other], ignore_index=True)).same_layouts(front)


def test_bytes_are_of_the_kv_dtype_and_of_what_is_kept():
    """4 bytes a number: K and V of 8 rows a head; the encoder's count for nothing, those across for the source."""
    rows = of_encoder((0.0, OWN, OWN, OWN), (1.0, ONE, TWO, ONE))
    table = ParetoFront.of(rows, "float32", weights=lambda layout: 100 * layout.cached_heads).table
    assert table["kv_bytes_per_token"].tolist() == [4 * 2 * 8 * 4, 2 * 2 * 8 * 4]
    assert table["kv_bytes_per_source_token"].tolist() == [4 * 2 * 8 * 4, 1 * 2 * 8 * 4]
    assert table["weight_ratio"].tolist() == [1, pytest.approx((1 + 2 + 1) / 12)]
    assert table["kv_ratio"].tolist() == [1, pytest.approx((2 + 1) / 8)]
    assert table["weights_bytes"].tolist() == [2400, 800]


def test_where_an_encoder_was_grouped_its_weights_are_what_is_traded(tmp_path):
    """Weights of 12, 8, 5 and 6 twelfths; of the cache the same layouts have 8, 4, 4 and 5 eighths."""
    rows = of_encoder((0.0, OWN, OWN, OWN), (1.0, OWN, TWO, TWO), (1.5, ONE, TWO, TWO), (4.0, ONE, ONE, OWN))
    front = ParetoFront.of(rows, "bfloat16")
    assert front.size == "weight_ratio" and front.table["on_front"].tolist() == [1, 1, 1, 0]
    assert front.front()["layout"].tolist() == [2, 1, 0]
    front.table["nll"] = [2.0, 2.1, 2.3, 2.05]
    front.mark()
    assert front.table["on_nll_front"].tolist() == [1, 0, 1, 1]
    # up to 1 and 4: from 5/12 on 4 - 1.5, from 8/12 on 4 - 1
    assert front.hypervolume() == pytest.approx(3 / 12 * 2.5 + 4 / 12 * 3)
    assert front.measured_columns == ["nll", "perplexity"]
    front.fill(1, {"cosine": 0.5, "nll": 2.2})
    front.write(tmp_path / "pareto.csv")
    again = ParetoFront.read(tmp_path / "pareto.csv")
    pd.testing.assert_frame_equal(again.table, front.table)
    assert again.measured_columns == ["nll", "perplexity", "cosine"] and again.table.loc[1, "nll"] == 2.2


def test_another_error_is_another_table_and_a_measurement_is_none():
    """What a resumed run keeps its measurements by."""
    front = ParetoFront.of(scored(*SEARCHED), "bfloat16")
    for column, changed in (("error", 0.25), ("method", "ward"), ("kv_heads", "3"), ("also_found_by", "exact")):
        other = ParetoFront(front.table.copy())
        other.table.loc[1, column] = changed
        assert not front.same_layouts(other) and not other.same_layouts(front), column
    other = ParetoFront(front.table.assign(nll=[2.0, 3.0, 4.0, 5.0], merge="spectral"))
    assert front.same_layouts(other)


def test_losses_are_over_the_original_even_where_another_one_measures_less():
    front = ParetoFront.of(scored(*SEARCHED), "bfloat16")
    front.table["nll"] = [2.0, 1.75, np.nan, 3.0]
    assert front.over.tolist()[:2] == [0.0, -0.25] and math.isnan(front.over[2])
    assert (front.judge, ParetoFront(front.table.assign(nll=np.nan)).judge) == ("nll", "error")
    assert ParetoFront(front.table.assign(nll=np.nan, kl=1.0, cosine=0.5)).judge == "cosine"
    assert ParetoFront(front.table.iloc[1:]).over.isna().all()


def test_methods_that_came_to_a_layout_later_found_it_too():
    rows = [replace(s, also_found_by=also) for s, also in zip(scored(*SEARCHED), ([], ["ward", "exact"], [], ["ward"]))]
    front = ParetoFront.of(rows, "bfloat16")
    assert front.found_by("ward")["layout"].tolist() == [1, 3]
    assert front.found_by("exact", "nobody")["layout"].tolist() == [1], "one of them is enough"
    assert front.found_by("war").empty and front.found_by("neighbour", "exact")["layout"].tolist() == [1, 3]


def test_floats_come_back_to_the_bit_and_older_tables_get_their_columns(tmp_path):
    errors = [0.0, 0.1 + 0.2, 1 / 3, 5e-324]
    rows = [replace(s, error=e) for s, e in zip(scored(*SEARCHED), errors)]
    ParetoFront.of(rows, "bfloat16", weights=lambda layout: 7).write(tmp_path / "pareto.csv")
    table = ParetoFront.read(tmp_path / "pareto.csv").table
    assert table["error"].tolist() == errors and table["weights_bytes"].tolist() == [7] * 4
    older = pd.read_csv(tmp_path / "pareto.csv").drop(columns=["also_found_by", "weights_bytes"])
    older.to_csv(tmp_path / "older.csv", index=False)
    again = ParetoFront.read(tmp_path / "older.csv").table
    assert list(again.columns) == list(table.columns) and again["weights_bytes"].isna().all()
