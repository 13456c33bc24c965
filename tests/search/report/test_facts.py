"""What a report shows is what the run holds."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from search import RunFolder
from search.pareto import EXACT
from search.report.facts import facts_of, half_of, plain, to_data


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


def test_pictures_show_the_best_at_half_of_the_cache(measured_run):
    front = measured_run.front()
    best = front.table.set_index("layout").loc[half_of(front)]
    assert best["kv_ratio"] == 0.5 and best["deploy"] != "none"
    half = front.table[(front.table["kv_ratio"] == 0.5) & (front.table["deploy"] != "none")]
    assert best["nll"] == half.loc[~half["method"].isin(["neighbour", "random"]), "nll"].min()


def test_numbers_in_a_page_are_short_and_never_nan():
    assert [plain(v) for v in (1 / 3, float("nan"), float("inf"), pd.NA, None, np.int64(7), "a\x1bb")][:6] == [
        0.33333, None, None, None, None, 7,
    ]  # fmt: skip
    assert "\x1b" not in plain("a\x1bb")
