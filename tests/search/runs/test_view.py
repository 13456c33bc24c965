"""`grouper layouts`: which rows, in which order."""

import pytest

from grouper import GrouperError, HeadLayout
from search import pick
from search.runs.pareto import ParetoFront, Scored
from search.runs.view import View, counts, viewed


@pytest.fixture
def front() -> ParetoFront:
    rows = [([0, 1, 2, 3], "original", 0.0), ([0, 1, 2, 2], "qcqa-ac", 0.4), ([0, 0, 1, 1], "qcqa-ec", 1.0),
            ([0, 1, 1, 1], "qcqa-ac", 0.9), ([0, 0, 0, 0], "qcqa-ac", 2.0)]  # fmt: skip
    layouts = [Scored(HeadLayout.from_labels([r, r], 4, 8), m, e, "mean") for r, m, e in rows]
    return ParetoFront.of(layouts, "bfloat16")


def numbers(front, **view) -> list[int]:
    return viewed(front, View(**view))["layout"].tolist()


def test_the_front_by_falling_cache(front):
    assert numbers(front) == [0, 1, 3, 4] and numbers(front, every=True) == [0, 1, 2, 3, 4]
    assert numbers(front, sort="kv_ratio") == [4, 3, 1, 0]
    assert numbers(front, sort="-error", every=True) == [4, 2, 3, 1, 0]


def test_by_class_and_the_best_within_a_budget(front):
    assert numbers(front, every=True, deploy="stock") == [0, 2, 4]
    assert numbers(front, best_under="1/2", deploy="any") == [3] and numbers(front, best_under="50%") == [2]
    assert numbers(front, best_under="0.8", deploy="any") == [1] and numbers(front, best_under="0.8") == [2]


def test_the_best_within_a_budget_is_what_an_export_takes_and_why_is_said(front):
    told = []
    chosen = viewed(front, View(best_under="0.8"), told.append)["layout"].tolist()
    picked = pick(front, "mean+refine", kv_ratio="0.8")
    assert chosen == [picked.layout] and told == [f"layout {picked.layout}: {picked.why}", picked.others]


def test_once_measured_nats_decide(front):
    front.table["nll"] = [3.0, 3.5, 3.1, 3.4, 4.0]
    front.mark()
    assert numbers(front, best_under="1/2") == [2] and numbers(front) == [0, 2, 4]
    rows = viewed(front, View(sort="over"))
    assert rows["over"].tolist() == pytest.approx([0.0, 0.1, 1.0])


def test_what_cannot_be_shown_is_refused(front):
    for view, message in (
        ({"sort": "beauty"}, "cannot sort by 'beauty'"), ({"deploy": "cloud"}, "unknown deployment class"),
        ({"deploy": "ragged"}, "no layout is like that"), ({"best_under": "0.1"}, "no layout"),
    ):  # fmt: skip
        with pytest.raises(GrouperError, match=message):
            viewed(front, View(**view))


def test_counts_are_short():
    assert counts("8;8;8;8") == "8 x4" and counts("16;8;8;4") == "16 8 x2 4" and counts("4/2;4/2") == "4/2 x2"
