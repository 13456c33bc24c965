"""Losses by position in the report: nats over the original, for each row and text."""

import pytest
from made_up_runs import ONE, OWN, TWO, made_up_run, scored

from search.report.facts import facts_of, to_data
from search.report.positions import losses_by_position

NAN = float("nan")
ROWS = (("original", 0.0, OWN), ("qcqa-ac", 0.5, TWO), ("qcqa-ac", 2.0, ONE))
BANDS = {
    "nll@0-256": [3.0, 3.25, NAN], "nll_se@0-256": [0.0, 0.125, NAN],
    "nll@256-512": [2.0, 1.5, NAN], "nll_se@256-512": [0.0, NAN, NAN],
}  # fmt: skip


def front_of(path, rows=ROWS, **columns):
    return made_up_run(path / "run", scored(*rows), **columns).front()


def test_a_row_has_its_difference_to_the_original_at_each_position(tmp_path):
    """0.25 = 3.25 - 3, -0.5 = 1.5 - 2; the original loses nothing, and the last row was not measured."""
    original, (series,), other = losses_by_position(front_of(tmp_path, **BANDS))
    assert original == other == []
    assert (series["text"], series["bands"], series["over"]) == ("", ["0-256", "256-512"], [0.25, -0.5])
    assert series["error"] == pytest.approx([0.125, NAN], nan_ok=True)


def test_texts_with_names_stand_in_the_place_of_their_mean(tmp_path):
    code = {f"{column}:code": [2 * value for value in values] for column, values in BANDS.items()}
    wiki = {f"{column}:wiki_2": values for column, values in BANDS.items()}
    found = losses_by_position(front_of(tmp_path, **BANDS, **wiki, **code))[1]
    assert [(one["text"], one["over"]) for one in found] == [("wiki_2", [0.25, -0.5]), ("code", [0.5, -1.0])]
    assert [one["error"][0] for one in found] == [0.125, 0.25]


@pytest.mark.parametrize(
    "columns", [{}, {"nll:wiki": [1.0, 2.0, 3.0]}, {"humaneval,pass@1": [1.0, 0.5, 0.25]}], ids=["none", "text", "task"]
)
def test_other_columns_are_of_no_position(tmp_path, columns):
    assert losses_by_position(front_of(tmp_path, **columns)) == [[], [], []]


def test_without_the_original_there_is_nothing_to_compare_to(tmp_path):
    columns = {column: values[1:] for column, values in BANDS.items()}
    assert losses_by_position(front_of(tmp_path, ROWS[1:], **columns)) == [[], []]


def test_differences_are_taken_before_numbers_are_rounded(tmp_path):
    """Of five digits, 12.34564 and 12.34556 would be one number; a single window's error is null."""
    columns = {"nll@0-256": [12.34556, 12.34564, NAN], "nll_se@0-256": [0.0, NAN, NAN]}
    folder = made_up_run(tmp_path / "run", scored(*ROWS), **columns)
    data = to_data(facts_of(folder))
    (series,) = data["positions"][1]
    assert series["over"] == [pytest.approx(0.00008, abs=1e-9)] and series["error"] == [None]
    assert len(data["positions"]) == len(data["rows"])
