"""Errors as losses: the curve by hand, and a search that uses it."""

import math

import numpy as np
import pandas as pd
import pytest

from grouper import GrouperError
from search import SearchOptions, search
from search.pareto import EXACT
from search.sensitivity import FILE, LEAST, curve

QUICK = SearchOptions(generations=3, population=16, tokens=2048, window=64, sensitivity=True)


def test_between_and_beyond_points_it_is_straight_in_logarithms():
    loss = curve([(0.1, 0.01), (1.0, 1.0), (10.0, 10.0)])
    assert loss(0.0) == 0 and loss(0.1) == pytest.approx(0.01) and loss(10.0) == pytest.approx(10.0)
    assert loss(math.sqrt(0.1)) == pytest.approx(0.1), "slope 2"
    assert loss(math.sqrt(10)) == pytest.approx(math.sqrt(10)), "slope 1"
    assert loss(0.01) == pytest.approx(0.0001) and loss(100.0) == pytest.approx(100.0)


def test_it_never_falls():
    loss = curve([(0.1, 0.02), (0.2, 0.01), (0.4, -3.0)])
    values = [loss(e) for e in np.linspace(0.01, 1, 200)]
    assert values == sorted(values) and values[0] > 0
    assert curve([(0.5, -1.0)])(0.5) == pytest.approx(LEAST) and curve([])(0.7) == 0.7


def test_a_search_adds_up_losses_and_goes_on_where_it_was_killed(reader, text, tmp_path):
    options = SearchOptions(**{**vars(QUICK), "text": str(text)})
    search(reader, tmp_path / "run", options)
    measured = pd.read_csv(tmp_path / "run" / FILE, **EXACT)
    assert sorted(set(measured["layer"])) == [0, 1, 2] and measured.groupby("layer").size().max() == 3
    whole = {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.csv")}
    measured[measured["layer"] < 2].to_csv(tmp_path / "run" / FILE, index=False)
    (tmp_path / "run" / "pareto.csv").unlink()
    search(reader, tmp_path / "run", options)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.csv")} == whole
    plain = search(reader, tmp_path / "plain", SearchOptions(**{**vars(options), "sensitivity": False})).table
    table = pd.read_csv(tmp_path / "run" / "pareto.csv")
    assert set(plain["error"]) != set(table["error"]) and table["error"].min() == 0


def test_it_wants_text(reader, tmp_path):
    with pytest.raises(GrouperError, match="--sensitivity measures"):
        search(reader, tmp_path / "run", QUICK)
