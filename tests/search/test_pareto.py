"""The front and its CSV by hand."""

import numpy as np
import pandas as pd
import pytest

from grouper import GrouperError, HeadLayout
from search.pareto import COLUMNS, ParetoFront, Scored


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
    older = (tmp_path / "pareto.csv").read_text().replace(",also_found_by", "").replace(",x;y", "")
    (tmp_path / "older.csv").write_text("\n".join(line.removesuffix(",") for line in older.splitlines()) + "\n")
    assert ParetoFront.read(tmp_path / "older.csv").table["also_found_by"].tolist() == [""] * 5
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(GrouperError, match="cannot read"):
        ParetoFront.read(tmp_path / "bad.csv")


def test_equal_points_are_both_on_the_front_and_rows_of_other_merges_change_no_layout():
    rows = (("original", [0, 1, 2, 3], 0.0), ("a", [0, 0, 1, 1], 1.0), ("b", [0, 1, 0, 1], 1.0))
    scored = [Scored(HeadLayout.from_labels([row], 4, 8), name, error, "mean") for name, row, error in rows]
    front = ParetoFront.of(scored, "bfloat16")
    assert front.table["on_front"].tolist() == [1, 1, 1]
    other = front.table.iloc[1:].assign(merge="spectral", nll=3.0)
    assert ParetoFront(pd.concat([front.table, other], ignore_index=True)).same_layouts(front)
