"""What a report shows is what the run holds."""

import json
import shlex
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_runs import ONE, OTHER, OWN, TWO, made_up_run, of_encoder, scored

from fitness.similarity import key_similarity, value_similarity
from grouper import Checkpoint, GrouperError, Grouping, HeadLayout, LayerLayout
from grouper.export.hf.engines import engines_for
from grouper.families.architecture import Architecture
from search import RunFolder, SearchOptions
from search.methods.candidate import Candidate
from search.report.facts import data_of, errors_of, facts_of, groups_of, landscape, plain, titles_of, to_data
from search.report.page import SCRIPTS
from search.runs.pareto import EXACT, ParetoFront, Scored
from search.runs.picking import representative
from search.runs.record import refining_options
from search.runs.samples import note_sample


@pytest.fixture(scope="module")
def facts(measured_run):
    return facts_of(measured_run)


@pytest.fixture(scope="module")
def data(facts):
    return json.loads(json.dumps(to_data(facts), allow_nan=False))


def test_rows_are_the_tables(data, measured_run):
    table = pd.read_csv(measured_run.path / "pareto.csv", **EXACT)
    assert data["columns"] == [*table.columns, "over"] and len(data["rows"]) == len(table)
    at = {name: data["columns"].index(name) for name in ("layout", "nll", "over", "kv_heads")}
    original = table["nll"].iloc[0]
    for shown, (_, row) in zip(data["rows"], table.iterrows()):
        assert (shown[at["layout"]], shown[at["kv_heads"]]) == (row["layout"], row["kv_heads"])
        assert (shown[at["nll"]] is None) == np.isnan(row["nll"])
        if not np.isnan(row["nll"]):
            assert abs(shown[at["over"]] - (row["nll"] - original)) < 1e-4


def test_groups_are_the_layouts(data, measured_run):
    apart = 0
    for number, groups in data["layouts"].items():
        layout = measured_run.layout(int(number))
        apart += groups["v"] is not None
        for layer, (k, v) in enumerate(zip(groups["k"], groups["v"] or groups["k"])):
            assert [ord(c) - ord("0") for c in k] == layout.layers[layer].k.group_of.tolist()
            assert [ord(c) - ord("0") for c in v] == layout.layers[layer].v.group_of.tolist()
    assert 0 < apart < len(data["layouts"])


def test_the_landscape_is_the_least_of_each_size(facts, measured_run):
    layers = pd.concat(pd.read_csv(measured_run.layer_path(i), **EXACT).assign(layer=i) for i in range(3))
    shared = layers[layers["layout"].isna()]
    shared = shared.assign(kv_heads=shared["kv_heads"].astype(int))
    by_hand = shared.groupby(["layer", "kv_heads"])["error"].min()
    found = facts.landscape.set_index(["layer", "kv_heads"])["error"]
    assert found.to_dict() == by_hand.to_dict()
    assert (facts.landscape["k_error"] <= facts.landscape["error"] + 1e-12).all()


def test_a_model_that_is_gone_leaves_a_report_without_maps(measured_run, tmp_path):
    shutil.copytree(measured_run.path, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**settings, "model": str(tmp_path / "gone")}))
    facts = facts_of(RunFolder(tmp_path / "run"))
    assert "gone" in facts.missing and not facts.similarity and to_data(facts)["windows"] is None


def test_a_page_begins_with_what_an_export_at_half_takes(measured_run, data):
    front = measured_run.front()
    best = representative(front)
    assert best["kv_ratio"] == 0.5 and best["deploy"] == "stock"
    half = front.table[(front.table["kv_ratio"] == 0.5) & (front.table["deploy"] == "stock")]
    assert best["nll"] == half.loc[~half["method"].isin(["neighbour", "random"]), "nll"].min()
    first = dict(zip(data["columns"], data["rows"][data["first"]]))
    assert (first["layout"], first["merge"]) == (best["layout"], best["merge"])


@pytest.mark.parametrize(
    ("searched", "refined", "words"),
    [
        ({}, None, "--text calibration.txt"),
        ({"text": "/a/b.txt"}, None, "--text /a/b.txt"),
        ({"dataset": "some/set:train", "tokens": 4096}, None, "--dataset some/set:train --tokens 4096"),
        ({"images": "/pictures", "window": 64}, None, "--images /pictures --window 64"),
        ({"text": "demo"}, {"scope": "block", "tokens": 99}, "--text demo --scope block --refine-tokens 99"),
        ({"text": "demo"}, "damaged", "--text demo"),
    ],
)
def test_the_options_that_refine_on_the_runs_own_text(measured_run, tmp_path, searched, refined, words):
    run = shutil.copytree(measured_run.path, tmp_path / "run")
    settings = json.loads((run / "run.json").read_text())
    shutil.rmtree(run / "digests")
    (run / "run.json").write_text(json.dumps(settings | searched))
    (run / "evaluation.json").write_text(json.dumps({"refinement": refined} if refined else {}))
    assert refining_options(RunFolder(run)) == words.split()


def test_the_page_says_whole_commands(data, measured_run):
    """The scripts' own words, without a browser: every row's command refines, and the first row is an export's."""
    if not (node := shutil.which("node")):
        pytest.skip("no node here")
    scripts = [(files("search.report") / "page" / name).read_text().removesuffix("open();\n") for name in SCRIPTS]
    stubs = "globalThis.IntersectionObserver = class {}; globalThis.location = { hash: '' };"
    asked = "state.rows = rowsOf(state.run); console.log(JSON.stringify([firstSelected(), state.rows.map(commandOf)]))"
    script = "\n".join([stubs, *scripts, f"state.run = {json.dumps(data)}; {asked}"])
    done = subprocess.run([node, "-"], input=script, capture_output=True, text=True, timeout=60)
    first, commands = json.loads(done.stdout)
    best = representative(measured_run.front())
    assert (first["layout"], first["merge"]) == (best["layout"], best["merge"])
    for (_, row), command in zip(measured_run.front().table.iterrows(), commands):
        if row["method"] == "original" or row["deploy"] == "none":
            assert not command.startswith("grouper")
        else:
            words = ["grouper", "export", str(measured_run.path), "-o", f"{data['model']}-{row['layout']}"]
            merge = ["--merge", "mean"] if row["merge"] != data["merge"] else []
            given = ["--layout", str(row["layout"]), *merge, "--text", "calibration.txt"]
            assert shlex.split(command) == [*words, *given]


def test_numbers_in_a_page_are_short_and_never_nan():
    assert [plain(v) for v in (1 / 3, float("nan"), float("inf"), pd.NA, None, np.int64(7), "a\x1bb")][:6] == [
        0.33333, None, None, None, None, 7,
    ]  # fmt: skip
    assert "\x1b" not in plain("a\x1bb")


def test_windows_are_what_each_attention_keeps(encoders, models, tmp_path):
    """An encoder keeps nothing, what reads across keeps the source, a sliding window its tokens."""
    whole = Architecture.of(Checkpoint.open(encoders("t5")).config).ungrouped
    run = made_up_run(
        tmp_path / "t5", [Scored(whole, "original", 0.0, "mean")], model=str(encoders("t5")),
        fingerprint=Checkpoint.open(encoders("t5")).fingerprint,
    )  # fmt: skip
    facts = facts_of(run, similar=False)
    assert facts.windows == [0, 0, None, None, None, None] and facts.unit == "attention"
    gone = made_up_run(tmp_path / "gone", [Scored(whole, "original", 0.0, "mean")], model="nowhere")
    assert facts_of(gone, similar=False).windows == [0, 0, None, None, None, None], "layouts know it, too"
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
        "refining": ["--dataset", "wiki"], "model": mistral.name,
    }  # fmt: skip
    assert {name: data[name] for name in wanted} == wanted and "\x1b" not in data["command"]
    checkpoint = Checkpoint.open(mistral)
    attention, inputs = a.read(checkpoint, 2), a.input_moments(checkpoint, 2)
    for kind, similar in (("k", key_similarity(attention, inputs)), ("v", value_similarity(attention, inputs))):
        for name, cosines in (("before", similar.before), ("aligned", similar.aligned)):
            assert data["similarity"][2][kind][name] == [round(100 * c) for c in cosines.flatten().tolist()]
        assert not torch.allclose(similar.before, similar.aligned, atol=0.02)


def number_of(front: ParetoFront) -> int:
    return int(representative(front)["layout"])


def test_the_layout_that_stands_for_a_run_is_the_best_of_the_largest_within_half(tmp_path):
    """No smaller one, though some lose less; no baseline, nothing that no engine takes. By nats, once there are any."""
    apart = HeadLayout((LayerLayout(Grouping.from_labels(TWO), Grouping.from_labels(OTHER)),), 4, 4, 8)
    rows = [
        *scored(
            ("original", 0.0, OWN), ("qcqa-ac", 0.1, [0, 1, 2, 2]), ("qcqa-ac", 0.5, TWO), ("qcqa-ac", 0.4, OTHER),
            ("neighbour", 0.2, [0, 1, 1, 0]), ("qcqa-ac", 0.05, ONE),
        ),
        Scored(apart, "separate", 0.1, "mean"),
    ]  # fmt: skip
    assert number_of(made_up_run(tmp_path / "searched", rows).front()) == 3
    nll = [2.0, 2.1, 2.2, 2.9, 2.05, 2.01, 2.05]
    assert number_of(made_up_run(tmp_path / "measured", rows, nll=nll).front()) == 2
    some = made_up_run(tmp_path / "partly", rows, nll=[2.0, 2.1, *[np.nan] * 3, 2.9, np.nan]).front()
    assert number_of(some) == 3, "the size comes first, then what was measured"
    few = made_up_run(tmp_path / "few", rows[:2]).front()
    assert number_of(few) == 1, "the smallest one where none is small enough"


def test_where_an_encoder_was_grouped_too_half_of_the_cache_stands_for_a_run(tmp_path):
    """As `export --kv-ratio 1/2` takes it. Weights of 6, 5 and 10 twelfths; of the cache 5, 4 and 8 eighths, of which
    none but the second is within half."""
    rows = of_encoder((0.0, OWN, OWN, OWN), (2.0, ONE, ONE, OWN), (1.5, ONE, ONE, [0, 1, 2, 2]), (0.5, TWO, OWN, OWN))
    front = made_up_run(tmp_path / "run", rows).front()
    assert number_of(front) == 2 and front.size == "weight_ratio"


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
    assert refining_options(run) == ["--text", "/a.txt"], "nothing was refined there"
    refinement = {"scope": "block", "tokens": 4096}
    (run.path / "evaluation.json").write_text(json.dumps({"refinement": refinement}))
    assert refining_options(run) == ["--text", "/a.txt", "--scope", "block", "--refine-tokens", "4096"]
    images = made_up_run(tmp_path / "images", rows, SearchOptions(images="/pictures"))
    assert refining_options(images) == ["--images", "/pictures"]
    assert refining_options(made_up_run(tmp_path / "none", rows)) == ["--text", "calibration.txt"], (
        "a place for one's own"
    )


def test_groups_are_a_character_a_head_also_beyond_ten():
    row = [*range(20), 0, 19]
    found = groups_of(HeadLayout.from_labels([row], 22, 8))
    assert [ord(c) - ord("0") for c in found["k"][0]] == row and found["v"] is None


def test_standard_errors_are_found_by_what_they_are_of():
    columns = ["nll", "nll_se", "kl", "kl:wiki", "kl_se:wiki", "piqa,acc", "piqa,acc_stderr", "error"]
    assert errors_of(columns) == {"over": "nll_se", "kl:wiki": "kl_se:wiki", "piqa,acc": "piqa,acc_stderr"}


def test_two_runs_have_names_that_differ_and_what_they_are_compared_by(tmp_path):
    rows = scored(("original", 0.0, OWN), ("qcqa-ac", 0.5, TWO))
    a, b, same, encoder = (
        facts_of(made_up_run(tmp_path / path, made, model=f"nowhere/{path[-1]}"))
        for path, made in (("a", rows), ("b", rows), ("x/a", rows), ("e", of_encoder((2.0, ONE, ONE, OWN))))
    )
    note_sample(tmp_path / "b", 1, "mean", "Once", " upon")
    data = data_of(a, b)
    assert (data["name"], data["beside"]["name"], data["comparable"]) == ("a", "b", ["error"])
    assert data["samples"] == [] and data["beside"]["samples"][0]["text"] == " upon"
    assert data["beside"]["rows"] == to_data(b)["rows"] and titles_of(a, b) == "a and b"
    assert "beside" not in data_of(a) and data_of(a)["name"] == "" and titles_of(a, None) == titles_of(a, same) == "a"
    assert [data_of(a, same)["name"], data_of(a, same)["beside"]["name"]] == [
        str(tmp_path / "a"),
        str(tmp_path / "x/a"),
    ]
    with pytest.raises(GrouperError, match="grouped an encoder and one did not"):
        data_of(a, encoder)
