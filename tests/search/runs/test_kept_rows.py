"""Rows of other types of KV cache: their sizes, one front by bytes, and who sees them."""

import numpy as np
import pandas as pd
import pytest

from grouper import GrouperError, HeadLayout
from search import pick
from search.runs.pareto import ParetoFront, Scored
from search.runs.view import View, viewed

ROWS = [("original", [0, 1, 2, 3], 0.0), ("qcqa-ec", [0, 0, 1, 1], 1.0), ("neighbour", [0, 1, 0, 1], 1.5)]


def made_up() -> ParetoFront:
    """Nats of the original, of half its heads, of a baseline; the first two at 8.5 and 4.5 bits as well."""
    front = ParetoFront.of([Scored(HeadLayout.from_labels([r], 4, 32), m, e, "mean") for m, r, e in ROWS], "bfloat16")
    for index, nll in enumerate((3.0, 3.2, 3.1)):
        front.fill(index, {"nll": nll, "perplexity": np.exp(nll), "kl": 0.1})
    for index, kv_cache, kv_bytes, nll in (
        (0, "q8_0", 272, 3.01), (0, "q4_0", 144, 3.3), (1, "q8_0", 136, 3.21), (1, "q4_0", 72, 3.5),
        (2, "q8_0", 136, 3.2),
    ):  # fmt: skip
        row = front.table.loc[index]
        front.kept = front.kept.filled(row, front.measured_columns, kv_cache, kv_bytes, {"nll": nll})
    front.mark()
    return front


def test_sizes_are_in_bytes_of_the_type():
    kept = made_up().kept.rows.set_index(["layout", "kv_cache"])
    assert kept.loc[(0, "q8_0"), "kv_ratio"] == pytest.approx(8.5 / 16)
    assert kept.loc[(1, "q4_0"), "kv_ratio"] == pytest.approx(4.5 / 32)
    assert kept.loc[(1, "q4_0"), "kv_bytes_per_token"] == 72
    assert kept["kl"].isna().all(), "what was not measured so is not taken from the row"


def test_one_front_by_bytes_beside_that_of_the_run():
    """A baseline at 136 bytes and 3.2 beats half the heads there, and at 256 bytes, and the original at 4.5 bits."""
    front = made_up()
    assert front.table["on_nll_front"].tolist() == [1, 0, 1], "as if nothing else were there"
    assert front.kept.rows["on_nll_front"].tolist() == [1, 0, 0, 1, 1]
    assert front.widened["on_nll_front"].tolist() == [1, 0, 1, 1, 0, 0, 1, 1]


def test_the_table_is_written_and_read_again(tmp_path):
    front = made_up()
    front.write(tmp_path / "pareto.csv")
    again = ParetoFront.read(tmp_path / "pareto.csv")
    pd.testing.assert_frame_equal(again.table, front.table)
    pd.testing.assert_frame_equal(again.kept.rows, front.kept.rows[again.kept.rows.columns], check_dtype=False)
    text = (tmp_path / "pareto.csv").read_text().splitlines()
    assert text[0].split(",").index("kv_cache") == 14, "behind the columns that every run has"
    again.write(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text().splitlines() == text


def test_without_other_types_the_table_is_as_it_was(tmp_path):
    front = made_up()
    bare = ParetoFront(front.table)
    bare.write(tmp_path / "pareto.csv")
    assert "kv_cache" not in (tmp_path / "pareto.csv").read_text()
    assert not len(ParetoFront.read(tmp_path / "pareto.csv").kept)
    with pytest.raises(GrouperError, match="evaluate RUN --kv-cache"):
        bare.kept.widened(bare.table)


def test_a_second_measurement_replaces_the_first():
    front = made_up()
    row = front.table.loc[0]
    front.kept = front.kept.filled(row, front.measured_columns, "q8_0", 272, {"nll": 4.0})
    rows = front.kept.rows
    assert len(rows) == 5 and rows.loc[(rows["layout"] == 0) & (rows["kv_cache"] == "q8_0"), "nll"].tolist() == [4.0]
    assert front.kept.lacks(row, ["q8_0", "fp8"]) and not front.kept.lacks(row, ["q8_0", "q4_0"])


def test_an_export_takes_the_fewest_nats_within_the_bytes():
    """With all heads at 8.5 bits rather than half of them at 16; baselines stay baselines."""
    front = made_up()
    assert pick(front, "mean", kv_ratio="0.54").layout == 1, "at the run's own type"
    best = pick(front, "mean", kv_ratio="0.54", kv_cache="any")
    assert (best.layout, best.row["kv_cache"]) == (0, "q8_0") and "at any type of KV cache" in best.why
    small = pick(front, "mean", kv_bytes_per_token=140, kv_cache="any")
    assert (small.layout, small.row["kv_cache"]) == (1, "q8_0")
    named = pick(front, "mean", kv_ratio="0.3", kv_cache="q4_0")
    assert (named.layout, named.row["kv_cache"]) == (0, "q4_0")
    for asked, message in (
        ({"kv_ratio": "0.1", "kv_cache": "any"}, "no layout within KV ratio 0.1: the smallest of this run has 14.1%"),
        ({"kv_ratio": "1/2", "kv_cache": "q3"}, "unknown KV cache type 'q3'"),
        ({"layout": 1, "kv_cache": "any"}, "name the type"),
    ):
        with pytest.raises(GrouperError, match=message):
            pick(front, "mean", **asked)
    assert pick(front, "mean", layout=1, kv_cache="q4_0").layout == 1


def test_rows_under_another_merge_are_not_taken():
    front = made_up()
    front.kept.rows.loc[front.kept.rows["layout"] == 1, "merge"] = "procrustes"
    with pytest.raises(GrouperError, match="no layout within"):
        pick(front, "mean", kv_bytes_per_token=140, kv_cache="any")


def test_layouts_are_shown_with_what_they_are_kept_as():
    front = made_up()
    assert "kv_cache" not in viewed(front, View())
    rows = viewed(front, View(kv_cache="any"))
    assert rows["kv_cache"].tolist() == ["", "q8_0", "", "q8_0", "q4_0"]
    assert rows["over"].tolist() == pytest.approx([0, 0.01, 0.1, 0.2, 0.5]), "over the original at the run's own type"
    rows = viewed(front, View(kv_cache="q8_0", every=True))
    assert rows["kv_cache"].tolist() == ["q8_0"] * 3
    told = []
    best = viewed(front, View(best_under="0.54", kv_cache="any"), told.append)
    assert best["layout"].tolist() == [0] and "any type" in told[0]


def test_the_report_names_the_type_beside_the_merge():
    front = made_up()
    table = front.kept.shown(front.table, "q4_0")
    assert table["merge"].tolist() == ["mean"] * 3 + ["mean, q4_0"] * 2 and "kv_cache" not in table
    assert len(front.kept.shown(front.table, "any")) == 8
