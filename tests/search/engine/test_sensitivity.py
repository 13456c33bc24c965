"""Errors as losses: the curve by hand, and a search that uses it."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_runs import made_up_run, scored

from grouper import Checkpoint, GrouperError, Grouping, HeadLayout, LayerLayout, export
from grouper.attention import MergedLayer
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.progress import no_progress
from grouper.refinement.layer import LayerWorker
from search import RunFolder, SearchOptions, search
from search.engine.sensitivity import FILE, JUDGED, LEAST, TOKENS, chosen, curve, measured, scaled
from search.methods.candidate import Candidate
from search.runs.pareto import EXACT

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


def test_a_search_adds_up_losses_and_goes_on_where_it_was_killed(reader, text, tmp_path, monkeypatch):
    for name in ("TOKENS", "JUDGED"):  # of refining and of judging: fewer
        monkeypatch.setattr(f"search.engine.sensitivity.{name}", 1024)
    options = SearchOptions(**{**vars(QUICK), "text": str(text)})
    search(reader, tmp_path / "run", options)
    measured = pd.read_csv(tmp_path / "run" / FILE, **EXACT)
    assert sorted(set(measured["layer"])) == [0, 1, 2] and measured.groupby("layer").size().max() == 3
    whole = {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.csv")}
    measured[measured["layer"] < 2].to_csv(tmp_path / "run" / FILE, index=False)
    (tmp_path / "run" / "pareto.csv").unlink()
    with pytest.raises(GrouperError, match=r"sensitivity.csv is damaged \(.*\): delete it, and it is measured again"):
        search(reader, tmp_path / "run", options)
    (tmp_path / "run" / "digests" / "sensitivity.json").unlink()
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


def test_a_layers_points_are_losses_of_the_model_with_that_layer_merged_alone(reader, text, tmp_path, monkeypatch):
    """Without refinement, against exports of those layouts; each layer is refined on what enters it in the original."""
    from transformers import AutoModelForCausalLM

    options = SearchOptions(fitness="weight", text=str(text), tokens=1024, window=64)
    run = made_up_run(tmp_path / "run", scored(("original", 0.0, range(8)), layers=3, query_heads=8), options)
    regrouper = Regrouper(Checkpoint.open(reader), options.calibration())
    half, one = (LayerLayout.from_labels([h % n for h in range(8)]) for n in (4, 1))
    found = [{"a": [Candidate(half, 0.5)]}, {"a": [Candidate(half, 0.6)]}, {"b": [Candidate(one, 1.0)]}]
    streams = []
    monkeypatch.setattr(LayerWorker, "set_targets", lambda self, sides: streams.append(sides.walk.stream.clone()))
    monkeypatch.setattr(LayerWorker, "fit", lambda self, start, *given: MergedLayer(start))
    points = dict(measured(found, [0, 2], run, regrouper, no_progress))
    assert {layer: [error for error, _ in some] for layer, some in points.items()} == {0: [0.5], 2: [1.0]}
    original = regrouper.model.model
    with torch.no_grad():
        hidden = original(regrouper.windows(TOKENS), output_hidden_states=True).hidden_states
    judged, whole = regrouper.held_out(JUDGED), LayerLayout.from_labels(range(8))
    for stream, layer, grouped in zip(streams, (0, 2), (half, one), strict=True):
        assert torch.allclose(stream, hidden[layer], atol=1e-4)
        layout = HeadLayout(tuple(grouped if i == layer else whole for i in range(3)), 8, 8, 16)
        export(reader, layout, tmp_path / str(layer))
        folder = tmp_path / str(layer)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        loss = nll(model, judged)
        assert points[layer][0][1] == pytest.approx(loss - nll(original, judged), abs=1e-5)


def test_candidates_become_losses_by_their_own_layers_curve(tmp_path):
    layout = LayerLayout.from_labels([0, 0, 1, 1])
    (tmp_path / FILE).write_text("layer,error,nats\n1,0.5,0.1\n0,0.5,0.2\n0,1.0,0.4\n")
    found = [{"a": [Candidate(layout, 2.0, 1.0)]}, {"a": [Candidate(layout, 1.0), Candidate(layout, 0.0)]}]
    done = scaled(found, RunFolder(tmp_path), None)
    assert [[c.error for c in layer["a"]] for layer in done] == [[pytest.approx(0.8)], [pytest.approx(0.2), 0.0]]
