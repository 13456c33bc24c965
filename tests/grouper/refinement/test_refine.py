import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import logits

from grouper import Architecture, Checkpoint, GrouperError, HeadLayout
from grouper.calibration.calibration import Calibration
from grouper.calibration.seen import Seen
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer, windows
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.machine import Machine
from grouper.merging import MERGES
from grouper.refinement.options import RefineOptions
from search import RunFolder, SearchOptions, Selection, evaluate, export_from_run, search

FEW = {"window": 128, "tokens": 2048}
REFINE = RefineOptions(tokens=512)


@pytest.fixture
def regrouper(text):
    """regrouper(MODEL), calibrated on a text."""
    return lambda model="demo": Regrouper(Checkpoint.open(model), Calibration(TextSource(str(text)), **FEW))


@pytest.fixture(scope="module")
def texted_run(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    search("demo", folder, SearchOptions(generations=3, population=16, text=str(text), tokens=2048, window=128))
    return folder


@pytest.fixture(scope="module")
def small_run(reader, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    search(reader, folder, SearchOptions(generations=3, population=16, text=str(text), tokens=2048, window=128))
    return folder


def ragged_layout(layers: int = 6, heads: int = 16, head_dim: int = 32) -> HeadLayout:
    rng = np.random.default_rng(0)
    return HeadLayout.from_labels(
        [rng.permutation(np.arange(heads) % (4 + layer)) for layer in range(layers)], heads, head_dim
    )


def weights(merged, layers=3):
    return [
        t
        for layer in range(layers)
        for t in (merged(layer).attention.k, merged(layer).attention.q, merged(layer).attention.o)
    ]


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_refinement_lowers_every_layers_error_and_the_loss_on_other_text(regrouper, scope):
    ours = regrouper()
    layout = ragged_layout()
    held_out = windows(TextSource("demo", purpose="evaluation"), load_tokenizer(ours.checkpoint), 128, 12)
    original = nll(ours.model.model, held_out)
    with ours.model.installed(layout, ours.merged(layout, MERGES["spectral"])) as model:
        plain = nll(model, held_out)
    merged = ours.refined(layout, MERGES["spectral"], RefineOptions(scope, steps=20, batch_tokens=512, tokens=512))
    assert all(merged(layer).after < merged(layer).before for layer in range(6))
    assert bool(merged(0).others) == (scope == "block")
    with ours.model.installed(layout, merged) as model:
        refined = nll(model, held_out)
    assert original < refined < plain
    assert nll(ours.model.model, held_out) == original, "the model in memory is the original again"


def test_the_same_call_gives_the_same_weights_and_a_killed_one_goes_on(reader, regrouper, tmp_path):
    layout, options = ragged_layout(3, 8, 16), RefineOptions(steps=3, batch_tokens=512, tokens=512)

    class Killed(Exception):
        pass

    told = []

    def kill(done, total, note):
        if note.startswith("refining layer 2"):
            raise Killed

    whole = weights(regrouper(reader).refined(layout, MERGES["spectral"], options, tmp_path / "a"))
    with pytest.raises(Killed):
        regrouper(reader).refined(layout, MERGES["spectral"], options, tmp_path / "b", kill, tell=told.append)
    of_layers = r"layer 0: error \d\.\d{4} -> \d\.\d{4} layer 1: error \d\.\d{4} -> \d\.\d{4}"
    assert re.fullmatch(of_layers, " ".join(told)), "layers are told of when they are done"
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["layer-000.safetensors", "layer-001.safetensors"]
    seen = set()
    resumed = weights(
        regrouper(reader).refined(
            layout,
            MERGES["spectral"],
            options,
            tmp_path / "b",
            lambda done, total, note: seen.add(note.split(",")[0]),
            tell=told.append,
        )
    )
    assert told[2:4] == told[:2] and [line[:8] for line in told[4:]] == ["layer 2:"]
    assert seen == {"refining layer 2"} and all(torch.equal(a, b) for a, b in zip(whole, resumed))


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_a_refined_export_is_what_was_refined(reader, text, small_run, tmp_path, prompt, scope):
    lines = []
    calibration, quarter = Calibration(TextSource(str(text)), **FEW), Selection(kv_ratio="1/4")
    refine = replace(REFINE, scope=scope)
    done = export_from_run(
        small_run, tmp_path / "out", quarter, calibration, refine, machine=Machine(tell=lines.append)
    )
    assert done.self_test.passed and any("refining 3 layers" in line and "about" in line for line in lines)
    facts = json.loads((tmp_path / "out" / "grouper.json").read_text())
    assert facts["merge"] == "spectral+refine" and facts["refined"]["scope"] == scope
    noted = RunFolder(small_run).read_refined()
    errors = [f"layer {i}: error {a:.4f} -> {b:.4f}" for i, (a, b) in enumerate(facts["refined"]["errors"])]
    assert [line for line in lines if " -> " in line] == errors
    assert noted[["before", "after"]].to_numpy().tolist() == facts["refined"]["errors"]
    seen = Seen.from_data(facts["refined"]["seen"])
    assert seen.used * seen.window == facts["refined"]["tokens"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "what refinement kept is gone"
    mlp = "model.layers.2.mlp.up_proj.weight"
    same = torch.equal(Checkpoint.open(reader).tensor(mlp), Checkpoint.open(tmp_path / "out").tensor(mlp))
    assert same == (scope == "attention")
    assert torch.isfinite(logits(tmp_path / "out", prompt)).all()
    export_from_run(small_run, tmp_path / "bare", quarter, calibration)
    assert json.loads((tmp_path / "bare" / "grouper.json").read_text())["merge"] == "spectral"


def test_evaluation_measures_other_merges_and_refinement_beside_the_runs_own(texted_run, tmp_path):
    shutil.copytree(texted_run, tmp_path / "run")
    front = RunFolder(tmp_path / "run").front()
    number = int(front.table[(front.table["kv_ratio"] == 0.25) & (front.table["deploy"] == "stock")].iloc[-1]["layout"])
    source = TextSource("demo", purpose="evaluation")
    options = {"layouts": f"0,{number}", "limit": 6, "window": 128}
    for more in ({}, {"merge": "mean"}, {"refine": RefineOptions(tokens=1024)}):
        front = evaluate(tmp_path / "run", source, **options, **more)
    measured = front.table[front.table["nll"].notna() & (front.table["layout"] == number)].set_index("merge")["nll"]
    assert measured["spectral+refine"] < measured["spectral"] < measured["mean"]
    assert (front.table["method"] == "original").sum() == 1
    with pytest.raises(GrouperError, match="unknown merge"):
        evaluate(tmp_path / "run", source, merge="luck", **options)


def test_refinement_without_text_or_with_an_unknown_scope_is_refused(regrouper, tmp_path):
    search("demo", tmp_path / "run", SearchOptions(generations=2, population=16))
    with pytest.raises(GrouperError, match="searched without text"):
        evaluate(tmp_path / "run", TextSource("demo", purpose="evaluation"), refine=REFINE, limit=2)
    with pytest.raises(GrouperError, match="unknown scope"):
        regrouper().refined(ragged_layout(), MERGES["spectral"], RefineOptions("galaxy", tokens=512))


def test_more_text_gets_more_steps():
    steps = [RefineOptions().plan("cpu").steps_for(t) for t in (1_000, 32_768, 131_072, 393_216)]
    assert steps == [20, 150, 424, 967] and Architecture.of(Checkpoint.open("demo").config).layers == 6


def test_streams_on_disk_give_the_same_weights(reader, regrouper, monkeypatch):
    layout, options = ragged_layout(3, 8, 16), RefineOptions(steps=2, batch_tokens=512, tokens=512)
    in_memory = weights(regrouper(reader).refined(layout, MERGES["spectral"], options))
    monkeypatch.setattr("grouper.running.walk.free_memory", lambda: 0.0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(in_memory, weights(regrouper(reader).refined(layout, MERGES["spectral"], options)))
    )
