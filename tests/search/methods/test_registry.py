"""Every method on one small multi-head model: search, measure, refine, export."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import logits

from grouper import Checkpoint, GrouperError
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.compress import Regrouper
from grouper.merging import MERGES
from grouper.refinement.options import RefineOptions
from search import RunFolder, SearchOptions, Selection, evaluate, export_from_run, pick, search
from search.methods.registry import METHODS


@pytest.fixture(scope="module")
def run(reader, text, tmp_path_factory):
    """All methods in one run, under the spectral fitness."""
    folder = tmp_path_factory.mktemp("methods") / "run"
    names = tuple(name for name, method in METHODS.items() if not method.baseline)
    search(reader, folder, SearchOptions(names, text=str(text), tokens=2048, window=128, generations=4, population=24))
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_says_what_it_is(name):
    entry = METHODS[name]
    assert entry.name == name and entry.paper
    assert hash(entry) == hash(METHODS[name]) and type(entry)(name=name).name == name, "its fields have defaults"


def test_all_methods_share_one_csv(run):
    table = RunFolder(run).front().table
    assert set(table["method"]) >= {*METHODS, "original"} - {"exact", "qcqa-ac"}, (
        "equal layouts stand once, under the first method"
    )
    points = table[["kv_bytes_per_token", "error"]].to_numpy()
    for (size, error), marked in zip(points, table["on_front"]):
        beaten = ((points <= (size, error)).all(1) & (points < (size, error)).any(1)).any()
        assert marked == (not beaten)
    mean = table[table["method"].isin(["kdgqa", "dgqa", "dgqa-diff"])]
    assert set(mean["merge"]) == {"mean", "spectral"}, "spectral only where every head keeps its queries"


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("qcqa-ac", "exact")])
def test_a_methods_layouts_are_measured_and_exported(run, reader, method, tmp_path, prompt):
    folder = RunFolder(run)
    table = folder.front().table
    rows = table[(table["method"] == method) & (table["kv_ratio"] < 1)]
    row = rows.iloc[len(rows) // 2]
    layout = folder.layout(int(row["layout"]))
    assert layout.kv_bytes_per_token() == row["kv_bytes_per_token"] and np.isfinite(row["error"])
    if row["deploy"] == "none":
        with pytest.raises(GrouperError, match="K and V"):
            export_from_run(run, tmp_path / "out", Selection(int(row["layout"])))
        return
    done = export_from_run(run, tmp_path / "out", Selection(int(row["layout"])))
    assert done.self_test.passed and done.weight_bytes[1] < done.weight_bytes[0] * (
        1.1 if done.export_class == "padded" else 1
    )
    model = Regrouper(Checkpoint.open(reader), None)  # the same by in-memory evaluation
    if row["merge"] == "mean":
        with model.model.installed(layout, model.merged(layout, MERGES["mean"])) as installed, torch.inference_mode():
            assert (installed(prompt).logits - logits(tmp_path / "out", prompt)).abs().max() < 1e-3


def test_evaluation_keeps_the_mean_where_nothing_else_makes_sense(run, text, tmp_path):
    table = RunFolder(run).front().table
    numbers = [int(table[table["method"] == m]["layout"].iloc[-1]) for m in ("gqkva", "separate", "qcqa-ec")]
    front = evaluate(
        run, TextSource(str(text)), layouts=",".join(map(str, numbers)), merge="procrustes", window=64, limit=4
    )
    measured = front.table[front.table["nll"].notna()].set_index("layout")["merge"]
    assert measured[numbers[0]] == "mean" and measured[numbers[1]] == measured[numbers[2]] == "procrustes"
    again = evaluate(run, TextSource(str(text)), layouts=",".join(map(str, numbers)), window=64, limit=4)
    assert (again.table["nll"].notna().sum(), len(again.table)) == (6, len(front.table)), (
        "measured once, and the original"
    )


@pytest.mark.parametrize("method", ["gqkva", "separate", "kdgqa"])
def test_every_kind_of_layout_is_refined(run, reader, text, method):
    folder = RunFolder(run)
    table = folder.front().table
    row = table[(table["method"] == method) & (table["kv_ratio"] < 0.8)].iloc[0]
    layout = folder.layout(int(row["layout"]))
    regrouper = Regrouper(Checkpoint.open(reader), Calibration(TextSource(str(text)), 1024, window=128))
    options = RefineOptions(steps=15, batch_tokens=512, tokens=2048)
    layers = [regrouper.refined(layout, MERGES[row["merge"]], options)(layer) for layer in range(3)]
    assert all(layer.after < layer.before for layer in layers)
    assert [len(layer.attention.q) for layer in layers] == [heads.query_heads for heads in layout.layers]


def test_a_killed_run_reads_every_kind_of_layout_back(run):
    folder = RunFolder(run)
    found = folder.read_layer(0, 8, 8)
    text = folder.layer_path(0).read_text()
    folder.write_layer(0, found)
    assert folder.layer_path(0).read_text() == text and found["gqkva"][0].layout.q is not None


def test_gqkvas_pairs_are_all_different_and_corners_are_there(run):
    candidates = RunFolder(run).read_layer(0, 8, 8)["gqkva"]
    shapes = [(c.layout.query_heads, c.layout.k.kv_heads) for c in candidates]
    assert shapes == [(1, 8), (2, 4), (4, 2), (8, 1), (2, 8), (4, 8), (1, 1)]
    for c, (queries, kv) in zip(candidates, shapes):
        q = np.arange(8) if c.layout.q is None else c.layout.q.group_of
        pairs = set(zip(q.tolist(), c.layout.k.group_of.tolist()))
        assert len(pairs) == (1 if (queries, kv) == (1, 1) else 8)


def test_separate_groupings_are_never_worse_and_count_both_kinds_of_heads(run):
    table = RunFolder(run).front().table
    apart = table[(table["method"] == "separate") & (table["deploy"] == "none")]
    assert len(apart) and apart["kv_heads"].str.contains("/").any()
    together = table[table["method"].isin(["qcqa-ac", "qcqa-ec"])]
    joined = pd.merge(apart, together, on="kv_bytes_per_token")
    assert len(joined) and (joined["error_x"] <= joined["error_y"] * 1.02 + 1e-9).all()


def test_a_budget_that_only_separate_groupings_meet_is_refused_with_the_reason(run):
    front = RunFolder(run).front()
    front.table = front.table[front.table["method"].isin(["original", "separate"])]
    row = front.table[front.table["deploy"] == "none"].iloc[0]
    front.table = front.table[(front.table["deploy"] != "stock") | (front.table["method"] == "original")]
    with pytest.raises(GrouperError, match="measured, not exported"):
        pick(front, "spectral", kv_ratio=str(row["kv_ratio"]))
