"""What a report shows is what the run holds."""

import json
import shlex
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

from search import RunFolder
from search.measuring import refining_options
from search.picking import representative
from search.report.facts import facts_of, plain, to_data
from search.report.page import SCRIPTS


@pytest.fixture(scope="module")
def facts(measured_run):
    return facts_of(measured_run)


@pytest.fixture(scope="module")
def data(facts):
    return json.loads(json.dumps(to_data(facts), allow_nan=False))


def test_rows_are_the_tables(data, measured_run):
    table = pd.read_csv(measured_run.path / "pareto.csv")
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
    layers = pd.concat(pd.read_csv(measured_run.layer_path(i)).assign(layer=i) for i in range(3))
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
