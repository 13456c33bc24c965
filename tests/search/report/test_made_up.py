"""What a report says of runs whose numbers are known."""

import json

import numpy as np
import pytest
import torch
from made_up_runs import made_up_run, scored
from matplotlib import pyplot as plt

from fitness.similarity import key_similarity, value_similarity
from grouper import Checkpoint, Grouping, HeadLayout, LayerLayout
from grouper.export.hf.engines import engines_for
from grouper.model.architecture import Architecture
from search import SearchOptions
from search.methods.candidate import Candidate
from search.pareto import Scored
from search.report.facts import calibrated_by, facts_of, half_of, landscape, to_data
from search.report.pictures import PICTURES

OWN, TWO, OTHER, ONE = [0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]


@pytest.fixture(autouse=True)
def figures():
    yield
    plt.close("all")


# facts.py


def test_windows_are_what_each_attention_keeps(encoders, models, tmp_path):
    """An encoder keeps nothing, what reads across keeps the source, a sliding window its tokens."""
    whole = Architecture.of(Checkpoint.open(encoders("t5")).config).ungrouped
    run = made_up_run(
        tmp_path / "t5", [Scored(whole, "original", 0.0, "mean")], model=str(encoders("t5")),
        fingerprint=Checkpoint.open(encoders("t5")).fingerprint,
    )  # fmt: skip
    facts = facts_of(run, similar=False)
    assert facts.windows == [0, 0, None, None, None, None] and facts.unit == "attention"
    assert facts.names == ["encoder 0", "encoder 1", "decoder 0", "decoder 0 across", "decoder 1", "decoder 1 across"]
    mistral = models("mistral", heads=8, kv_heads=4, sliding_window=32)
    a = Architecture.of(Checkpoint.open(mistral).config)
    run = made_up_run(
        tmp_path / "mistral", [Scored(a.ungrouped, "original", 0.0, "mean")],
        SearchOptions(fitness="weight", kv_dtype="int8", dataset="wiki"), str(mistral),
        Checkpoint.open(mistral).fingerprint, command="grouper search \x1b",
    )  # fmt: skip
    facts = facts_of(run)
    assert (facts.windows, facts.context, facts.names, facts.unit) == ([32] * 3, 256, [], "layer")
    assert facts.engines == {kind: engines_for(a, kind) for kind in ("stock", "padded", "ragged")}
    assert facts.engines["ragged"] != facts.engines["stock"]
    data = to_data(facts)
    wanted = {
        "layers": 3, "queryHeads": 8, "kvHeads": 4, "headDim": 16, "bytes": 1, "kvDtype": "int8", "usable": 0.9,
        "windows": [32] * 3, "context": 256, "fitness": "weight", "text": "wiki", "merge": "mean", "missing": None,
        "original": "original", "baselines": ["neighbour", "random"], "traded": "KV cache, of the original's",
        "calibration": ["--dataset", "wiki"], "model": mistral.name,
    }  # fmt: skip
    assert {name: data[name] for name in wanted} == wanted and "\x1b" not in data["command"]
    checkpoint = Checkpoint.open(mistral)
    attention, inputs = a.read(checkpoint, 2), a.input_moments(checkpoint, 2)
    for kind, similar in (("k", key_similarity(attention, inputs)), ("v", value_similarity(attention, inputs))):
        for name, cosines in (("before", similar.before), ("aligned", similar.aligned)):
            assert data["similarity"][2][kind][name] == [round(100 * c) for c in cosines.flatten().tolist()]
        assert not torch.allclose(similar.before, similar.aligned, atol=0.02)


def test_the_layout_that_stands_for_a_run_is_the_best_of_the_largest_within_half(tmp_path):
    """Not smaller ones, though some lose less; nor baselines, nor what no engine takes. By nats, once there are some."""
    apart = HeadLayout((LayerLayout(Grouping.from_labels(TWO), Grouping.from_labels(OTHER)),), 4, 4, 8)
    rows = [
        *scored(
            ("original", 0.0, OWN), ("qcqa-ac", 0.1, [0, 1, 2, 2]), ("qcqa-ac", 0.5, TWO), ("qcqa-ac", 0.4, OTHER),
            ("neighbour", 0.2, [0, 1, 1, 0]), ("qcqa-ac", 0.05, ONE),
        ),
        Scored(apart, "separate", 0.1, "mean"),
    ]  # fmt: skip
    assert half_of(made_up_run(tmp_path / "searched", rows).front()) == 3
    nll = [2.0, 2.1, 2.2, 2.9, 2.05, 2.01, 2.05]
    assert half_of(made_up_run(tmp_path / "measured", rows, nll=nll).front()) == 2
    some = made_up_run(tmp_path / "partly", rows, nll=[2.0, 2.1, *[np.nan] * 3, 2.9, np.nan]).front()
    assert half_of(some) == 5, "the largest that was measured"
    assert half_of(made_up_run(tmp_path / "few", rows[:2]).front()) == 0, "the first one where none is small enough"


def test_the_landscape_is_of_layouts_that_group_k_and_v_alike(tmp_path):
    """Two query heads a KV head. Cheaper ones that group them apart, or share queries, say nothing about a size."""
    two, other = Grouping.from_labels(TWO, 2), Grouping.from_labels(OTHER, 2)
    shares = LayerLayout(two, two, Grouping.from_labels([0, 0, 1, 1, 2, 2, 3, 3]))
    found = {
        "qcqa-ac": [Candidate(LayerLayout.shared(two), 0.5, 0.2), Candidate(LayerLayout.from_labels(ONE, 2), 0.9, 0.6)],
        "qcqa-ec": [Candidate(LayerLayout.shared(other), 0.4, 0.1)],
        "separate": [Candidate(LayerLayout(two, other), 0.01)],
        "gqkva": [Candidate(shares, 0.02)],
    }
    first = HeadLayout.from_labels([OWN], 8, 16)
    run = made_up_run(tmp_path / "run", [Scored(first, "original", 0.0, "mean")], found=[found])
    assert landscape(run, first).to_numpy().tolist() == [[0, 1, 0.9, 0.6], [0, 2, 0.4, 0.1]]


def test_exports_that_the_page_proposes_refine_as_the_evaluation_did(tmp_path):
    rows = scored(("original", 0.0, OWN))
    run = made_up_run(tmp_path / "text", rows, SearchOptions(text="/a.txt"))
    assert calibrated_by(run) == ["--text", "/a.txt"], "nothing was refined there"
    refinement = {"scope": "block", "tokens": 4096}
    (run.path / "evaluation.json").write_text(json.dumps({"refinement": refinement}))
    assert calibrated_by(run) == ["--text", "/a.txt", "--scope", "block", "--refine-tokens", "4096"]
    images = made_up_run(tmp_path / "images", rows, SearchOptions(images="/pictures"))
    assert calibrated_by(images) == ["--images", "/pictures"]
    assert calibrated_by(made_up_run(tmp_path / "none", rows)) == ["--text", "calibration.txt"], "a place for one's own"


# pictures.py


@pytest.fixture
def facts(reader, tmp_path):
    """Of a model with 3 layers of 8 heads; layout 1 groups K and V apart."""
    checkpoint = Checkpoint.open(reader)
    k, v = [0, 1, 0, 1, 2, 2, 3, 3], [0, 0, 1, 1, 1, 2, 2, 0]
    apart = LayerLayout(Grouping.from_labels(k), Grouping.from_labels(v))
    layouts = [
        *scored(("original", 0.0, range(8)), layers=3, query_heads=8, head_dim=16),
        Scored(HeadLayout((apart,) * 3, 8, 8, 16), "separate", 0.5, "mean"),
    ]
    half = LayerLayout.from_labels(k)
    found = [{"qcqa-ac": [Candidate(half, 2.0**i, 0.25), Candidate(LayerLayout.from_labels([0] * 8), 4.0, 0.5)]}
             for i in range(3)]  # fmt: skip
    run = made_up_run(tmp_path / "run", layouts, None, str(reader), checkpoint.fingerprint, found)
    run.note_refined(1, "mean+refine", [(0.9, 0.8)] * 3)
    run.note_refined(1, "spectral+refine", [(0.5, 0.1), (0.6, 0.2), (0.7, 0.3)])
    run.note_refined(0, "spectral+refine", [(9.0, 9.0)] * 3)
    run.write_progress(0, [("qcqa-ac", 10, 8.0), ("qcqa-ac", 20, 2.0)])
    run.write_progress(1, [("qcqa-ac", 10, 4.0), ("qcqa-ac", 30, 3.0)])
    return facts_of(run)


def test_heads_are_drawn_by_the_group_of_k_that_they_read(facts):
    (image,) = PICTURES["heads"](facts, 1).axes[0].images
    assert np.asarray(image.get_array()).tolist() == [[0, 1, 0, 1, 2, 2, 3, 3]] * 3


def test_similarities_are_the_middle_layers_in_the_order_of_groups(facts):
    order = {"k": [0, 2, 1, 3, 4, 5, 6, 7], "v": [0, 1, 7, 2, 3, 4, 5, 6]}
    axes = PICTURES["similarity"](facts, 1).axes
    for axis, (kind, when) in zip(axes, [("k", "before"), ("k", "aligned"), ("v", "before"), ("v", "aligned")]):
        whole = getattr(facts.similarity[1][kind], when)
        wanted = [[float(whole[a, b]) for b in order[kind]] for a in order[kind]]
        assert np.allclose(np.asarray(axis.images[0].get_array()), wanted)


def test_errors_are_drawn_together_and_apart(facts):
    figure = PICTURES["landscape"](facts, 1)
    grids = {axis.get_title(): axis.collections[0].get_array().reshape(2, 3).tolist() for axis in figure.axes[:3]}
    wanted = {
        "K and V": [[4, 4, 4], [1, 2, 4]], "K": [[0.5] * 3, [0.25] * 3],
        "V": [[3.5, 3.5, 3.5], [0.75, 1.75, 3.75]],
    }  # fmt: skip
    assert grids == wanted


def test_progress_is_relative_to_each_layers_first_generation(facts):
    lines = PICTURES["progress"](facts, 1).axes[0].lines
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in lines[:2]] == [
        ([10, 20], [1.0, 0.25]), ([10, 30], [1.0, 0.75]),
    ]  # fmt: skip


def test_refinement_is_the_layouts_and_the_last_merges(facts):
    bars = PICTURES["refinement"](facts, 1).axes[0].containers
    assert {c.get_label(): [bar.get_height() for bar in c] for c in bars} == {
        "merged": [0.5, 0.6, 0.7], "refined": [0.1, 0.2, 0.3],
    }  # fmt: skip
