"""Errors as losses: the curve by hand, and a search that uses it."""

import math

import numpy as np
import pandas as pd
import pytest

from grouper import GrouperError, Grouping, LayerLayout
from search import SearchOptions, search
from search.methods.candidate import Candidate
from search.sensitivity import FILE, LEAST, chosen, curve

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
    measured = pd.read_csv(tmp_path / "run" / FILE)
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


def test_a_single_point_is_a_share_and_beyond_the_ends_the_last_slope_goes_on():
    assert curve([(0.5, 0.2)])(0.25) == pytest.approx(0.1) and curve([(0.5, 0.2)])(2.0) == pytest.approx(0.8)
    steep = curve([(1.0, 1.0), (10.0, 1000.0), (100.0, 10_000.0)])  # slope 3, then 1
    assert steep(0.1) == pytest.approx(1e-3) and steep(1000.0) == pytest.approx(1e5)
    flat = curve([(1.0, 1.0), (10.0, 0.5)])  # never falls: 1 at both, and hardly rises beyond
    assert flat(10.0) == 1 and flat(100.0) == pytest.approx(10**0.001) and flat(0.1) == pytest.approx(10**-0.001)
    assert curve([(0.0, 5.0), (1.0, 2.0)])(0.5) == pytest.approx(1.0), "no error says nothing"


def test_layers_are_tried_at_a_half_a_quarter_and_an_eighth():
    def candidate(k: int, error: float, v: int | None = None) -> Candidate:
        grouping, other = (Grouping.from_labels(np.arange(16) % n) for n in (k, v or k))
        return Candidate(LayerLayout(grouping, other), error)

    every = [candidate(k, 1 / k) for k in range(1, 16)]
    found = {"a": every[::2], "b": every[1::2], "c": [candidate(8, 0.01), candidate(4, 9.0), candidate(16, 0.0)]}
    assert [(c.layout.k.kv_heads, c.error) for c in chosen(found, 16)] == [(8, 0.01), (4, 0.25), (2, 0.5)]
    few = {"a": [candidate(12, 0.1), candidate(6, 0.2), candidate(1, 1.0)]}
    assert [c.layout.k.kv_heads for c in chosen(few, 16)] == [6, 1], "6 is nearest to 8 and to 4, 1 to 2"
    apart = {"a": [candidate(8, 0.1, 6), candidate(8, 0.2, 10)]}  # 14 and 18 heads: as near to 16, the smaller one
    assert [c.layout.v.kv_heads for c in chosen(apart, 16)] == [6]
    assert chosen({"a": [candidate(16, 0.0)]}, 16) == []
