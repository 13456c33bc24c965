"""What the picture says: the right axis, the knee, the same bytes."""

import re

import numpy as np
import pandas as pd
import pytest
from made_up_runs import ONE, OWN, SEARCHED, of_encoder, scored

from grouper import Grouping, HeadLayout, LayerLayout
from search.runs.pareto import ParetoFront, Scored
from search.runs.picture import draw, draw_heads, knee, values


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


def test_models_without_a_loss_are_drawn_by_what_they_have():
    front = ParetoFront.of(scored(*SEARCHED), "bfloat16")
    table, what, logarithmic = values(ParetoFront(front.table.assign(cosine=[1.0, 0.75, np.nan, 0.5])))
    assert (table["value"].tolist(), logarithmic) == ([1e-4, 0.25, 0.5], True) and what.startswith("1 - cosine")
    table, what, logarithmic = values(ParetoFront(front.table.assign(kl=[0.0, 0.75, 0.5, np.nan])))
    assert (table["value"].tolist(), logarithmic) == ([1e-4, 0.75, 0.5], True) and what == "KL to the original"
    encoder = ParetoFront.of(of_encoder((0.0, OWN, OWN, OWN), (1.0, ONE, OWN, OWN)), "bfloat16")
    assert values(encoder)[0]["kv_ratio"].tolist() == [1, 0.75], "what is traded there: weights"
    below = ParetoFront(front.table.assign(nll=[2.0, 1.5, 2.5, 3.0]))
    assert values(below)[0]["value"].tolist() == [0.25, 0.25, 0.5, 1], "half of the least there is"


def test_heads_are_drawn_of_the_best_at_half_and_at_a_quarter():
    from matplotlib import pyplot as plt

    four, apart = Grouping.from_labels(np.arange(8) % 6), Grouping.from_labels(np.arange(8) % 2)
    rows = [
        Scored(HeadLayout((LayerLayout(four, apart),) * 2, 8, 8, 4), "separate", 0.5, "mean"),
        *scored(("a", 0.6, np.arange(8) % 4), ("a", 0.9, [0, 0, 0, 0, 1, 1, 1, 1]), layers=2, query_heads=8),
    ]
    front = ParetoFront.of(rows, "bfloat16")
    axes = plt.figure().subplots()
    draw_heads(axes, front.table.assign(value=front.table["error"]))
    drawn = {patch.get_label(): patch.get_data().values.tolist() for patch in axes.patches}
    assert drawn == {"half, layout 0": [4, 4], "quarter, layout 2": [2, 2]}, "6 K and 2 V heads are 4 of each"
    plt.close("all")


def test_a_table_without_layouts_of_a_search_is_drawn(tmp_path):
    front = ParetoFront.of(scored(*SEARCHED[:1]), "bfloat16")
    draw(front, tmp_path / "a.svg", "x")
    assert (tmp_path / "a.svg").stat().st_size > 1000
