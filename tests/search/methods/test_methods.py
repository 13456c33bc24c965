"""Every method on one small multi-head model: search, measure, export; and what each method promises."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from random_layers import small_attention
from tiny_models import logits

from fitness import PairwiseFitness
from grouper import Checkpoint, GrouperError, Grouping, HeadLayout, LayerLayout
from grouper.calibration.moments import InputMoments, collect_moments, load_moments, save_moments
from grouper.calibration.source import TextSource
from grouper.export import export
from grouper.model.in_memory import InMemoryModel
from grouper.refinement.refine import RefineOptions
from grouper.regroup import Calibration, Regrouper
from search import RunFolder, SearchOptions, evaluate, export_from_run, pick, search
from search.methods.gqkva import best_grid
from search.methods.key_driven import allocate, dgqa, dgqa_diff, kdgqa, key_norms
from search.methods.registry import METHODS
from search.methods.task import LayerTask
from search.methods.ward import ward
from search.optimise.nsga2 import Settings


@pytest.fixture(scope="module")
def run(reader, text, tmp_path_factory):
    """All methods in one run, under the spectral fitness."""
    folder = tmp_path_factory.mktemp("methods") / "run"
    names = tuple(name for name, method in METHODS.items() if not method.baseline)
    search(reader, folder, SearchOptions(names, text=str(text), tokens=2048, window=128, generations=4, population=24))
    return folder


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
            export_from_run(run, tmp_path / "out", layout=int(row["layout"]))
        return
    done = export_from_run(run, tmp_path / "out", layout=int(row["layout"]))
    assert done.self_test.passed and done.weight_bytes[1] < done.weight_bytes[0] * (
        1.1 if done.deploy == "padded" else 1
    )
    model = Regrouper(Checkpoint.open(reader), None)  # the same by in-memory evaluation
    if row["merge"] == "mean":
        installed = model.install(layout, model.merged(layout, "mean"))
        with torch.inference_mode():
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
    assert (again.table["nll"].notna().sum(), len(again.table)) == (5, len(front.table)), "measured once"


@pytest.mark.parametrize("method", ["gqkva", "separate", "kdgqa"])
def test_every_kind_of_layout_is_refined(run, reader, text, method):
    folder = RunFolder(run)
    table = folder.front().table
    row = table[(table["method"] == method) & (table["kv_ratio"] < 0.8)].iloc[0]
    layout = folder.layout(int(row["layout"]))
    regrouper = Regrouper(Checkpoint.open(reader), Calibration(TextSource(str(text)), 1024, 2048, window=128))
    options = RefineOptions(steps=15, batch_tokens=512)
    layers = [regrouper.refined(layout, row["merge"], options)(layer) for layer in range(3)]
    assert all(layer.after < layer.before for layer in layers)
    assert [len(layer.attention.q) for layer in layers] == [heads.query_heads for heads in layout.layers]


def test_a_killed_run_reads_every_kind_of_layout_back(run):
    folder = RunFolder(run)
    found = folder.read_layer(0)
    text = folder.layer_path(0).read_text()
    folder.write_layer(0, found)
    assert folder.layer_path(0).read_text() == text and found["gqkva"][0].layout.q is not None


# Key-driven


def random_task(heads: int = 8, keys: np.ndarray | None = None) -> LayerTask:

    a = small_attention(0, heads, bias=False)
    gram = torch.einsum("adx,bdx->ab", a.k, a.k)
    inputs = InputMoments(
        torch.eye(13, dtype=torch.float64), 8, torch.stack([gram, 2 * gram]) if keys is None else torch.tensor(keys)
    )
    return LayerTask("weight", None, attention=a, inputs=inputs)


@pytest.mark.parametrize(
    "shares", [[1, 1, 1, 1], [0, 0, 0, 0], [100, 1, 1, 1], [0, 0, 0, 1e-30], [3, 2, 2, 1], [np.nan] * 4]
)
@pytest.mark.parametrize("queries", [4, 7, 16])
def test_queries_are_dealt_out_whole_and_to_every_head(shares, queries):
    sizes = allocate(np.array(shares, float), queries)
    assert sum(sizes) == queries and min(sizes) >= 1 and len(sizes) == 4
    if len(set(shares)) == 1 and queries % 4 == 0:
        assert len(set(sizes)) == 1


def test_more_key_norm_means_more_queries():
    assert allocate(np.array([3.0, 2, 2, 1]), 16) == [6, 4, 4, 2]


@pytest.mark.parametrize("method", [kdgqa, dgqa, dgqa_diff])
def test_key_driven_layouts_keep_order_and_neighbours(method):
    found = method(random_task(), np.random.default_rng(0), Settings())
    assert [c.kv_heads for c in found] == list(range(1, 8))
    for c in found:
        assert [h for readers in c.layout.k.readers for h in readers] == list(range(8))
        assert [h for sources in c.layout.k.sources for h in sources] == list(range(8))


def test_equal_keys_give_equal_shares():
    found = kdgqa(random_task(keys=np.eye(8)[None].repeat(3, 0)), np.random.default_rng(0), Settings())
    assert {c.kv_heads: c.layout.k.sizes for c in found}[4] == (2, 2, 2, 2)


def test_key_norms_are_of_the_averaged_heads_on_each_window(reader):
    model = InMemoryModel(Checkpoint.open(reader))
    tokens = torch.randint(0, 4096, (3, 32), generator=torch.Generator().manual_seed(0))
    moments = collect_moments(model, tokens)
    seen = []
    hook = model.layer(1).self_attn.k_proj.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.inference_mode():
        model.model(tokens)
    hook.remove()
    k = seen[0].unflatten(-1, (8, 16))  # [windows, tokens, heads, d]
    expected = torch.stack([k[:, :, :3].mean(2).flatten(1).norm(dim=1), k[:, :, 3:].mean(2).flatten(1).norm(dim=1)], 1)
    assert np.allclose(key_norms(moments[1].keys.double().numpy(), [[0, 1, 2], [3, 4, 5, 6, 7]]), expected, rtol=1e-4)


def test_key_driven_methods_ask_for_text(reader, tmp_path):
    with pytest.raises(GrouperError, match="--text"):
        search(reader, tmp_path / "run", SearchOptions(("kdgqa",)))
    assert not (tmp_path / "run").exists()


# GQKVA


def random_pairs(seed: int, heads: int) -> PairwiseFitness:
    rows = np.random.default_rng(seed).normal(size=(heads, 60))
    return PairwiseFitness.from_gram(rows @ rows.T)


def test_the_grid_search_finds_the_best_grid():
    from itertools import permutations

    queries, kv = random_pairs(0, 6), random_pairs(1, 6)
    every = np.array(list(permutations(range(6))))
    for columns in (2, 3):
        least = (queries.errors(every // columns) + kv.errors(every % columns)).min()
        place = best_grid(queries, kv, columns, np.random.default_rng(0), Settings())[None]
        assert np.isclose((queries.errors(place // columns) + kv.errors(place % columns))[0], least)


def test_gqkvas_pairs_are_all_different_and_corners_are_there(run):
    candidates = RunFolder(run).read_layer(0)["gqkva"]
    shapes = [(c.layout.query_heads, c.layout.k.kv_heads) for c in candidates]
    assert shapes == [(1, 8), (2, 4), (4, 2), (8, 1), (2, 8), (4, 8), (1, 1)]
    for c, (queries, kv) in zip(candidates, shapes):
        q = np.arange(8) if c.layout.q is None else c.layout.q.group_of
        pairs = set(zip(q.tolist(), c.layout.k.group_of.tolist()))
        assert len(pairs) == (1 if (queries, kv) == (1, 1) else 8)


def test_a_planted_grid_goes_out_without_loss_and_with_fewer_queries(reader, tmp_path, prompt):
    from tiny_models import edit_weights

    q, kv = [0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 1, 1, 1, 1, 0, 0]

    def plant(tensors):
        for layer in range(3):
            for kind, labels in (("q", q), ("k", kv), ("v", kv)):
                name = f"model.layers.{layer}.self_attn.{kind}_proj.weight"
                heads = tensors[name].view(8, 16, -1)
                tensors[name] = heads[[labels.index(g) for g in labels]].flatten(0, 1).contiguous()

    folder = edit_weights(reader, tmp_path / "planted", plant)
    layer = LayerLayout(Grouping.from_labels(kv), Grouping.from_labels(kv), Grouping.from_labels(q))
    layout = HeadLayout((layer,) * 3, 8, 8, 16)
    assert HeadLayout.from_json(layout.to_json()) == layout and layout.only_mean and layout.deploy == "ragged"
    export(folder, layout, tmp_path / "out")
    assert (logits(tmp_path / "out", prompt) - logits(folder, prompt)).abs().max() < 1e-4
    assert Checkpoint.open(tmp_path / "out").tensors["model.layers.1.self_attn.q_proj.weight"].shape[0] == 4 * 16


def test_gqkva_asks_for_a_multi_head_model(models, tmp_path):
    with pytest.raises(GrouperError, match="multi-head"):
        search(models("llama", heads=8, kv_heads=4), tmp_path / "run", SearchOptions(("gqkva",), "weight"))


# Ward, separate


def test_ward_is_scipys_on_heads_of_length_one():
    from scipy.cluster.hierarchy import fcluster, linkage

    rows = np.random.default_rng(3).normal(size=(9, 40))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    fitness = PairwiseFitness(random_pairs(4, 9).pairs, distance=1 - unit @ unit.T)
    tree = linkage(unit, "ward")
    for c in ward(fitness, np.random.default_rng(0), Settings()):
        expected = fcluster(tree, c.kv_heads, "maxclust")
        assert ((c.labels[:, None] == c.labels) == (expected[:, None] == expected)).all()


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


# Calibration


def test_a_dataset_calibrates_like_a_file(reader, text, tmp_path):
    pytest.importorskip("datasets")  # an optional extra
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps({"text": text.read_text()}) + "\n")
    a, b = (
        Regrouper(Checkpoint.open(reader), Calibration(source, 1024, window=128)).windows(1024)
        for source in (TextSource(str(text)), TextSource(dataset=f"{tmp_path / 'data'}:train"))
    )
    assert torch.equal(a, b)
    with pytest.raises(GrouperError, match="NAME"):
        TextSource(dataset=f"{tmp_path / 'data'}:nothing").documents(None)
    with pytest.raises(GrouperError, match="nowhere"):
        TextSource(dataset=f"{tmp_path}/nowhere").documents(None)


def test_kept_calibration_is_used_again_and_only_for_the_same_text(reader, text, tmp_path, monkeypatch):
    def calibrated(tokens: int) -> list[InputMoments]:
        return Regrouper(
            Checkpoint.open(reader), Calibration(TextSource(str(text)), tokens, window=128, keep=tmp_path / "kept")
        ).moments

    first, other = calibrated(2048), calibrated(1024)
    assert len(list((tmp_path / "kept").iterdir())) == 2 and not torch.equal(first[0].second, other[0].second)
    monkeypatch.setattr("grouper.regroup.collect_moments", None)  # no second pass
    again = calibrated(2048)
    for a, b in zip(first, again):
        assert torch.equal(a.second, b.second) and torch.equal(a.keys, b.keys) and a.tokens == b.tokens
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(GrouperError, match="no kept calibration"):
        load_moments(tmp_path / "bad.safetensors")
    save_moments(tmp_path / "good.safetensors", first)
    assert torch.equal(load_moments(tmp_path / "good.safetensors")[2].second, first[2].second)


def test_a_model_that_does_not_fit_is_calibrated_through_offload(reader, text, monkeypatch):
    calibration = Calibration(TextSource(str(text)), 1024, window=128)
    whole = Regrouper(Checkpoint.open(reader), calibration).moments
    monkeypatch.setattr(
        "grouper.model.in_memory.free_memory", lambda: 1.5e6
    )  # less than the weights: accelerate puts some on disk
    placed = []
    init = InMemoryModel.__init__
    monkeypatch.setattr(
        InMemoryModel, "__init__", lambda self, *a, **k: init(self, *a, **k) or placed.append(self.model.hf_device_map)
    )
    offloaded = Regrouper(Checkpoint.open(reader), calibration).moments
    assert "disk" in placed[0].values()
    for a, b in zip(whole, offloaded):
        assert torch.allclose(a.second, b.second, rtol=1e-4, atol=1e-5) and torch.allclose(a.keys, b.keys, rtol=1e-3)
