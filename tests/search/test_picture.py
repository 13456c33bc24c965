"""What the picture says: the right axis, the knee, the same bytes."""

import re

import numpy as np
import pandas as pd
import pytest

from grouper import HeadLayout
from search.pareto import ParetoFront, Scored
from search.picture import draw, knee, values


@pytest.fixture
def front() -> ParetoFront:
    rows = [([0, 1, 2, 3], "original", 0.0), ([0, 0, 1, 1], "qcqa-ec", 1.0), ([0, 1, 1, 1], "qcqa-ac", 0.9),
            ([0, 1, 0, 1], "neighbour", 1.5), ([0, 0, 0, 0], "qcqa-ac", 2.0)]  # fmt: skip
    layouts = [Scored(HeadLayout.from_labels([r, r], 4, 8), m, e, "mean") for r, m, e in rows]
    return ParetoFront.of(layouts, "bfloat16")


def texts(path) -> str:
    """What is written in the picture; letters are drawn, but comments name them."""
    return " ".join(re.findall(r"<!-- (.*?) -->", path.read_text()))


def test_before_and_after_measuring(front, tmp_path):
    draw(front, tmp_path / "a.svg", "a model <&> its front")
    assert "error of the merge" in texts(tmp_path / "a.svg") and "half: 0.9" in texts(tmp_path / "a.svg")
    table, what, logarithmic = values(front)
    assert what.startswith("error") and not logarithmic and table["value"].equals(front.table["error"])
    front.table["nll"] = [3.0, 3.2, 3.1, 6.0, 4.0]
    draw(front, tmp_path / "b.svg", "measured")
    assert "nats per token over the original" in texts(tmp_path / "b.svg") and "half: 0.1" in texts(tmp_path / "b.svg")
    table, _, logarithmic = values(front)
    assert logarithmic and table["value"].tolist() == pytest.approx([0.05, 0.2, 0.1, 3.0, 1.0])
    draw(front, tmp_path / "c.svg", "measured")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "c.svg").read_bytes()


def test_where_the_original_was_not_measured_losses_stay_as_they_are(front):
    front.table.loc[1:2, "nll"] = [3.2, 3.1]
    table, what, logarithmic = values(front)
    assert what == "nats per token" and not logarithmic and table["value"].tolist() == [3.2, 3.1]


def test_classes_and_heads_are_told(front, tmp_path):
    draw(front, tmp_path / "a.svg", "x")
    said = texts(tmp_path / "a.svg")
    assert all(
        word in said for word in ("stock", "padded", "original", "neighbour heads", "KV heads", "half, layout 2")
    )
    empty = ParetoFront(front.table[front.table["method"] == "original"].copy())
    draw(empty, tmp_path / "b.svg", "x")
    assert "no layout at half or a quarter" in texts(tmp_path / "b.svg")


def test_the_knee_is_farthest_below_the_chord():
    ratios = np.array([0.1, 0.3, 0.5, 0.9])
    assert knee(ratios, np.array([9.0, 2.0, 1.5, 1.0])) == 1
    assert knee(ratios, np.array([9.0, 7.0, 5.0, 1.0])) is None, "a straight line has none"
    assert knee(ratios[:2], np.array([2.0, 1.0])) is None and knee(ratios, np.ones(4)) is None
    assert knee(ratios, np.array([9.0, 8.9, 8.8, 1.0])) is None, "nor has one that bulges"


def test_a_front_shows_itself_in_a_notebook(front):
    shown = front._repr_html_()
    assert shown.startswith("<svg") and shown.count("<svg") == 1 and shown.rstrip().endswith("</table>")
    assert "qcqa-ac" in shown and "nll" not in shown[shown.index("<table") :], "what was not measured is not shown"


def test_a_table_of_one_row_is_drawn(front, tmp_path):
    one = ParetoFront(pd.DataFrame(front.table.iloc[:1]))
    draw(one, tmp_path / "a.svg", "x")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
