"""Which rates are tried, and which one is taken, from scores laid down by hand."""

import math

import pytest

from grouper.uptraining.probing import find_rate


def found(scores: dict[float, float], first: float = 3e-5) -> tuple[float, list[float]]:
    """(the rate, the rates that were tried): each has the score of the nearest one here."""
    near = lambda rate: scores[min(scores, key=lambda known: abs(math.log(known / rate)))]  # noqa: E731
    rate, tried = find_rate(near, first)
    return rate, list(tried)


def test_downwards_while_that_gets_better():
    rate, tried = found({1e-4: 5.0, 3e-5: 4.0, 1e-5: 2.0, 3.3e-6: 1.0, 1.1e-6: 1.5})
    assert rate == pytest.approx(3e-5 / 9) and tried == pytest.approx([3e-5, 1e-5, 3e-5 / 9, 3e-5 / 27])


def test_else_upwards():
    rate, tried = found({1e-5: 3.0, 3e-5: 2.0, 9e-5: 1.0, 2.7e-4: 4.0})
    assert rate == pytest.approx(9e-5) and tried == pytest.approx([3e-5, 1e-5, 9e-5, 2.7e-4])


def test_the_highest_of_those_that_are_as_good():
    """A hundredth worse is as good; a twentieth is not."""
    assert found({3e-5: 1.05, 1e-5: 1.01, 3.3e-6: 1.0, 1.1e-6: 1.2})[0] == pytest.approx(1e-5)


def test_a_training_that_breaks_down_is_no_good():
    assert found({3e-5: math.nan, 1e-5: math.inf, 3.3e-6: 1.0, 1.1e-6: 2.0})[0] == pytest.approx(3e-5 / 9)


def test_there_is_an_end_on_both_sides():
    rate, tried = found({1.0: 0.0, 1e-9: 5.0})  # ever better upwards
    assert rate == max(tried) <= 1e-2
    rate, tried = found({1e-12: 1.0}, first=1e-6)
    assert min(tried) >= 1e-7 and rate == max(tried) == 1e-6, "all are alike here"


def test_where_all_break_down_the_lowest_is_taken():
    rate, tried = found({1e-5: math.nan})
    assert rate == min(tried)
