"""A merge, a fitness and a method that nobody here knows: those of docs/extending.md, in a module of their own."""

import importlib
import json
import re

import numpy as np
import pytest
import torch
from random_layers import small_attention
from safetensors.torch import load_file
from tiny_models import ROOT, add_tokenizer, make_model

from fitness import FITNESSES
from grouper import ExportOptions, GrouperError, HeadLayout, UptrainOptions, export, uptrain_model
from grouper.calibration.source import TextSource
from grouper.merging import MERGES
from grouper.uptraining.methods import METHODS as WAYS_TO_TRAIN
from search import RunFolder, SearchOptions, Selection, evaluate, export_from_run, search
from search.methods.registry import METHODS


@pytest.fixture
def new(tmp_path, monkeypatch):
    """The module, its entries in the registries while a test runs."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    (tmp_path / "module").mkdir()
    names = ("trimmed", "angle", "strided", "frozen_queries")  # each example is a whole file
    for name, block in zip(names, blocks, strict=True):
        (tmp_path / "module" / f"{name}.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path / "module")
    trimmed, angle, strided, frozen = map(importlib.import_module, names)
    entries = [(MERGES, trimmed.Trimmed()), (FITNESSES, angle.Angle()), (METHODS, strided.Strided())]
    entries.append((WAYS_TO_TRAIN, frozen.FrozenQueries()))
    for registry, entry in entries:
        registry.add(entry)
    yield entries
    for registry, entry in entries:
        registry.remove(entry.name)
    for name in names:
        del importlib.sys.modules[name]


def test_the_fitness_of_the_docs_keeps_what_every_fitness_promises(new):
    attention, labels = small_attention(0), np.array([[0, 1, 1, 0, 2, 2]])
    fitness = FITNESSES["angle"]
    whole, k, v = (fitness.tables(attention, None, part).errors(labels)[0] for part in ("kv", "k", "v"))
    assert np.isclose(whole, k + v) and fitness.tables(attention).errors(np.arange(6)[None])[0] == 0


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 8), ("qwen2", 4), ("qwen3", 8)])
def test_new_entries_go_through_search_evaluation_and_export(new, text, tmp_path, family, kv_heads):
    model = add_tokenizer(make_model(tmp_path / "model", family, 8, kv_heads, vocab_size=4096))
    options = SearchOptions(
        ("strided", "qcqa-ec"), "angle", generations=2, population=16, set=("strided.shifts=2", "angle.power=2")
    )
    run, out = tmp_path / "run", tmp_path / "out"
    front = search(model, run, options)
    assert len(front.found_by("strided")) >= 2 and set(front.table["merge"]) == {"mean"}
    settings = json.loads((run / "run.json").read_text())
    assert settings["fitness"] == "angle" and settings["set"] == ["strided.shifts=2", "angle.power=2"]
    row = front.found_by("strided").iloc[0]
    measured = evaluate(run, TextSource(str(text)), merge="trimmed", layouts=f"0,{row['layout']}", window=64, limit=2)
    assert set(measured.table.dropna(subset="nll")["merge"]) == {"mean", "trimmed"}, (
        "the original's row is the run's own"
    )
    wanted = Selection(int(row["layout"]), merge="trimmed")
    done = export_from_run(run, out, wanted, options=ExportOptions(max_padding=9.0), set=("trimmed.trim=0",))
    facts = json.loads((out / "grouper.json").read_text())
    assert done.self_test.passed and (facts["merge"], facts["method"], facts["fitness"]) == (
        "trimmed",
        row["method"],
        "angle",
    )


def test_new_entries_are_searched_by_processes_of_their_own(new, models, tmp_path):
    options = SearchOptions(("strided",), "angle", generations=2, population=16)
    for name, jobs in (("one", 1), ("two", 2)):
        search(models("llama"), tmp_path / name, options, jobs=jobs)
    for file in ("pareto.csv", "layers/02.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_measurements_with_other_parameters_are_not_mixed(new, text, reader, tmp_path):
    front = search(reader, tmp_path / "run", SearchOptions(("strided",), "angle", generations=2, population=16))
    number = str(front.found_by("strided").iloc[0]["layout"])
    options = {"merge": "trimmed", "layouts": number, "window": 64, "limit": 2}
    evaluate(tmp_path / "run", TextSource(str(text)), set=("trimmed.trim=2",), **options)
    with pytest.raises(GrouperError, match="measured on other text, windows or parameters"):
        evaluate(tmp_path / "run", TextSource(str(text)), **options)
    with pytest.raises(GrouperError, match="there is no merge 'strided'"):
        evaluate(tmp_path / "run", TextSource(str(text)), set=("strided.shifts=2",), **options)


def test_an_export_shows_what_was_measured_of_just_such_a_merge(new, text, reader, tmp_path):
    front = search(reader, tmp_path / "run", SearchOptions(("strided",), "angle", generations=2, population=16))
    number = int(front.found_by("strided").iloc[0]["layout"])
    options = {"merge": "trimmed", "layouts": f"0,{number}", "window": 64, "limit": 2}
    evaluate(tmp_path / "run", TextSource(str(text)), set=("trimmed.trim=2",), **options)
    for trim, shown in ((2, True), (0, False)):
        out = tmp_path / f"trimmed-{trim}"
        loose = ExportOptions(max_padding=9.0)
        wanted = Selection(number, merge="trimmed")
        export_from_run(tmp_path / "run", out, wanted, options=loose, set=(f"trimmed.trim={trim}",))
        facts = json.loads((out / "grouper.json").read_text())
        assert bool(facts["measured"]) == shown and facts["parameters"] == {"trim": trim}


def test_the_way_to_train_of_the_docs_leaves_queries_alone(new, text, reader, tmp_path):
    export(reader, HeadLayout.from_labels([[0, 0, 1, 1, 2, 2, 3, 3]] * 3, 8, 16), tmp_path / "in", merge="mean")
    options = UptrainOptions(method="frozen-queries", tokens=1024, step_tokens=128, window=64, lr=1e-3)
    uptrain_model(tmp_path / "in", tmp_path / "out", TextSource(str(text)), options, base=str(reader))
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("in", "out"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)}


def test_once_gone_they_are_unknown(models, tmp_path):
    for options, why in (
        ({"method": ("strided",)}, "unknown method 'strided'"),
        ({"fitness": "angle"}, "unknown fitness"),
    ):
        with pytest.raises(GrouperError, match=why):
            search(models("llama"), tmp_path / "run", SearchOptions(**options))
    assert not (tmp_path / "run").exists() and not RunFolder(tmp_path / "run").exists()
