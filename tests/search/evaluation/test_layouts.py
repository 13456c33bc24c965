"""What `evaluate` adds to a run, and measuring models themselves."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_runs import SEARCHED, made_up_run, scored
from rank_threads import side_by_side
from scipy.stats import kendalltau, spearmanr

from grouper import Checkpoint, GrouperError
from grouper.calibration.source import TextSource, named_sources
from grouper.compress import Regrouper
from grouper.gauge import Gauge
from grouper.machine import Machine
from grouper.merging import MERGES
from grouper.ranks import Ranks
from grouper.refinement.options import RefineOptions
from search import (
    ParetoFront,
    RunFolder,
    SearchOptions,
    Selection,
    evaluate,
    export_from_run,
    search,
)
from search.evaluation import layouts as evaluation
from search.evaluation import proxies
from search.evaluation.layouts import fill_in
from search.evaluation.models import evaluate_model, names_a_model
from search.evaluation.proxies import FILE, read_proxies
from search.runs.chosen import measured as measured_facts
from search.runs.samples import read_samples

QUICK = SearchOptions(fitness="weight", generations=4, population=24)
ADDED = ["nll_se", "kl", "kl_se", "agreement", "agreement_se"]


@pytest.fixture
def run(reader, tmp_path):
    search(reader, tmp_path / "run", QUICK)
    return tmp_path / "run"


def original(front: ParetoFront) -> pd.Series:
    return front.table[front.table["method"] == "original"].iloc[0]


def test_other_types_of_kv_cache_have_rows_of_their_own(run, text, models):
    """Measured once, resumed by type; the run's own type is measured anyway."""
    source, said = TextSource(str(text)), []
    machine = Machine("cpu", tell=said.append)
    how = {"window": 64, "limit": 4, "layouts": "0,3", "machine": machine}
    before = evaluate(run, source, **how)
    bare = (run / "pareto.csv").read_bytes()
    front = evaluate(run, source, **how, kv_cache=("bfloat16",))
    assert (run / "pareto.csv").read_bytes() == bare and not len(front.kept)
    front = evaluate(run, source, **how, kv_cache=("fp8", "bfloat16"))
    pd.testing.assert_frame_equal(front.table, before.table)
    rows = front.kept.rows
    assert rows[["layout", "kv_cache"]].to_numpy().tolist() == [[0, "fp8"], [3, "fp8"]]
    assert (rows["kl"] > 0).all() and (rows["nll"] != front.table.loc[[0, 3], "nll"].to_numpy()).all()
    assert rows["kv_ratio"].tolist() == (front.table.loc[[0, 3], "kv_ratio"] / 2).tolist()
    table = pd.read_csv(run / "pareto.csv")
    assert len(table) == len(front.table) + 2 and table["kv_cache"].tail(2).tolist() == ["fp8"] * 2
    said.clear()
    evaluate(run, source, **how, kv_cache=("fp8",))
    assert not any("measuring" in line and "measuring 0" not in line for line in said), "nothing is measured again"
    evaluate(run, source, **how, kv_cache=("fp8-scaled",))
    assert len(RunFolder(run).front().kept) == 4
    evaluate(run, source, **how, overwrite=True)
    assert not len(RunFolder(run).front().kept), "forgotten with the others"


def test_layouts_are_rounded_in_the_gauge_of_their_export_and_the_original_in_its_own(run, text, monkeypatch):
    """A gauge that makes keys far smaller, which e4m3 then loses: layouts suffer, the original does not."""
    how = {"window": 64, "limit": 4, "layouts": "0,3", "overwrite": True, "kv_cache": ("fp8",)}
    before = evaluate(run, TextSource(str(text)), **how).kept.rows.set_index("layout")["kl"]
    made = Regrouper.gauged
    smaller = Gauge(torch.full((8, 16), 2.0**14), torch.ones(8), [0.0] * 8)

    def other(self, layout, merged):
        found = made(self, layout, merged)
        found.gauges = {
            layer: replace(smaller, k=smaller.k[: len(one.k.members)], v=smaller.v[: len(one.v.members)])
            for layer, one in enumerate(layout.layers)
        }
        return found

    monkeypatch.setattr(Regrouper, "gauged", other)
    after = evaluate(run, TextSource(str(text)), **how).kept.rows.set_index("layout")["kl"]
    assert after[0] == before[0] and after[3] > 1.5 * before[3]


def test_types_of_kv_cache_that_cannot_be_measured(run, text):
    source = TextSource(str(text))
    for kv_cache, message in ((("q4_0",), "blocks of 32 values"), (("q3",), "unknown KV cache type 'q3'")):
        with pytest.raises(GrouperError, match=message):
            evaluate(run, source, window=64, limit=2, layouts="0", kv_cache=kv_cache)


def test_an_export_for_another_type_says_so(run, text, tmp_path):
    said: list[str] = []
    evaluate(run, TextSource(str(text)), window=64, limit=4, layouts="0,3", kv_cache=("fp8",))
    chosen = Selection(kv_ratio="1/2", kv_cache="any")
    done = export_from_run(run, tmp_path / "out", chosen, machine=Machine("cpu", tell=said.append))
    assert done.kv_cache == "fp8" and done.kv_bytes_per_token[0] > 0 and "kept as fp8" in said[0]
    assert "kv_cache" not in json.loads((tmp_path / "out" / "grouper.json").read_text())["report"]
    done = export_from_run(run, tmp_path / "other", Selection(layout=3))
    assert done.kv_cache is None


def test_closeness_stands_behind_the_columns_there_are(run, text):
    front = evaluate(run, TextSource(str(text)), window=64, limit=6, layouts="0,3,9")
    table = pd.read_csv(run / "pareto.csv")
    assert list(table.columns[-len(ADDED) :]) == ADDED and list(table.columns[9:12]) == [
        "nll",
        "perplexity",
        "on_nll_front",
    ]
    rows = table[table["nll"].notna()]
    assert sorted(rows["layout"]) == [0, 3, 9]
    assert original(front)["kl"] == 0 and original(front)["agreement"] == 1 and original(front)["nll_se"] == 0
    others = rows[rows["layout"] > 0]
    assert (others["kl"] > 0).all() and (others["agreement"] < 1).all() and (others["nll_se"] > 0).all()
    assert np.exp(others["nll"]).to_numpy() == pytest.approx(others["perplexity"].to_numpy())
    facts = measured_facts(front, 9, "mean")
    assert list(facts) == ["nats per token", "perplexity", "KL to the original", "agreement with the original"]
    assert facts["KL to the original"] == [0.0, pytest.approx(others["kl"].iloc[-1])]


def test_several_texts_get_a_column_each_and_their_mean(run, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[30_000:])
    alone = [evaluate_model_like(run, source) for source in (text, other)]
    sources = named_sources([f"first={text}", f"second={other}"], None, "evaluation")
    front = evaluate(run, sources, window=64, limit=6, layouts="0,9", overwrite=True)
    row = front.table[front.table["layout"] == 9].iloc[0]
    for name, expected in zip(("first", "second"), alone):
        assert row[f"nll:{name}"] == pytest.approx(expected["nll"]) and row[f"kl:{name}"] == pytest.approx(
            expected["kl"]
        )
    assert row["nll"] == pytest.approx((alone[0]["nll"] + alone[1]["nll"]) / 2)
    assert row["nll_se"] == pytest.approx(math.hypot(alone[0]["nll_se"], alone[1]["nll_se"]) / 2)
    with pytest.raises(GrouperError, match="measured on other text"):
        evaluate(run, TextSource(str(text)), window=64, limit=6, layouts="0,9")


def evaluate_model_like(run, source) -> pd.Series:
    """Layout 9 on one text."""
    front = evaluate(run, TextSource(str(source)), window=64, limit=6, layouts="0,9", overwrite=True)
    return front.table[front.table["layout"] == 9].iloc[0]


def test_names_of_texts(tmp_path):
    plain = tmp_path / "a=b.txt"
    plain.write_text("x")
    assert named_sources([str(plain)], None, "evaluation") == TextSource(str(plain), None, "evaluation")
    assert list(named_sources(["x=demo"], None, "evaluation")) == ["x"]
    for wrong in (["a.txt", "b.txt"], ["x=a.txt", "x=b.txt"], ["x=a.txt", "b.txt"]):
        with pytest.raises(GrouperError, match="a name each"):
            named_sources(wrong, None, "evaluation")


def test_more_windows_measure_again_and_without_a_limit_there_are_as_many_as_before(run, text):
    """The original is measured in any case; the time is said before anything is measured."""
    told, source = [], TextSource(str(text))

    def measured(**more):
        told.clear()
        machine = Machine(tell=told.append, progress=lambda done, total, note: told.append(note))
        return evaluate(run, source, window=64, layouts="3", machine=machine, **more).table

    table = measured(limit=4)
    assert table.loc[table["nll"].notna(), "layout"].tolist() == [0, 3]
    assert re.fullmatch(r"measuring 2 layouts on 4 windows of 64 tokens: about \d+ s", told[0]) and len(told) == 3
    more = measured(limit=6)
    assert "on 4 windows before" in told[0] and "on 6 windows of 64 tokens" in told[1] and len(told) == 4
    assert (more["nll"] != table["nll"])[more["nll"].notna()].all()
    same = measured()
    assert not told and same["nll"].equals(more["nll"])
    with pytest.raises(GrouperError, match="measured on other text, windows"):
        measured(limit=4)
    measured(limit=5, overwrite=True)
    assert "on 5 windows" in told[0]


def test_a_run_measured_before_closeness_was_known_is_measured_again(run, text):
    evaluate(run, TextSource(str(text)), window=64, limit=4, layouts="0,3")
    table = pd.read_csv(run / "pareto.csv").drop(columns=ADDED)
    table.to_csv(run / "pareto.csv", index=False)
    told = []
    front = evaluate(
        run,
        TextSource(str(text)),
        window=64,
        limit=4,
        layouts="0,3",
        machine=Machine(progress=lambda *a: told.append(a)),
    )
    assert len(told) == 2 and front.table.loc[front.table["layout"] == 3, "kl"].notna().all()
    told.clear()
    evaluate(
        run,
        TextSource(str(text)),
        window=64,
        limit=4,
        layouts="0,3",
        machine=Machine(progress=lambda *a: told.append(a)),
    )
    assert not told


def test_proxies_are_ranked_at_one_kv_ratio(run, text, monkeypatch):
    """The run's own fitness, the weights' error, ranks as scipy ranks the column `error`."""
    front = RunFolder.open(run).front()
    ratio = front.table.groupby("kv_ratio").size().drop(1.0).idxmax()
    at_half = front.table[front.table["kv_ratio"] == ratio]["layout"].tolist()
    monkeypatch.setattr(proxies, "LEAST", 4)
    assert len(at_half) >= 4
    assert evaluate(run, TextSource(str(text)), window=64, limit=6, layouts="0,3") is not None
    assert not (run / FILE).exists(), "two layouts say nothing"
    front = evaluate(run, TextSource(str(text)), window=64, limit=6, layouts=",".join(map(str, [0, *at_half])))
    found = read_proxies(run)
    assert set(found["fitness"]) == {"weight", "activation", "spectral"}
    assert found["kv_ratio"].to_numpy() == pytest.approx(ratio, abs=1e-6)
    rows = front.table[front.table["layout"].isin(at_half)]
    own = found[found["fitness"] == "weight"].iloc[0]
    assert own["layouts"] == len(at_half)
    assert own["spearman"] == pytest.approx(spearmanr(rows["error"], rows["nll"]).statistic)
    assert own["kendall"] == pytest.approx(kendalltau(rows["error"], rows["nll"]).statistic)


def test_a_model_and_its_export_are_measured_by_themselves(run, reader, text, tmp_path):
    source = TextSource(str(text))
    done = export_from_run(run, tmp_path / "out", Selection(kv_ratio="1/2", deploy="any"))
    written = json.loads((tmp_path / "out" / "grouper.json").read_text())["layout"]
    folder = RunFolder.open(run)
    numbers = folder.front().table["layout"].astype(int)
    number = next(n for n in numbers if json.loads(folder.layout(n).to_json()) == written)
    front = evaluate(run, source, window=64, limit=6, layouts=f"0,{number}")
    row = front.table.set_index("layout").loc[number]
    found = evaluate_model(tmp_path / "out", source, base=str(reader), window=64, limit=6)
    assert done.export_class in ("stock", "padded", "ragged")
    for column in ("nll", "kl", "agreement", "kl_se"):
        assert found.values[column] == pytest.approx(row[column], rel=1e-4), column
    assert found.original["nll"] == pytest.approx(original(front)["nll"], rel=1e-6) and "kl" not in found.original
    alone = evaluate_model(reader, source, window=64, limit=6)
    assert alone.values == {n: found.original[n] for n in ("nll", "perplexity")} and alone.original is None
    assert json.loads(json.dumps(found.to_data()))["model"] == str(tmp_path / "out")


def test_runs_are_told_from_models(run, reader):
    assert names_a_model(str(reader)) and names_a_model("demo") and names_a_model("some/model")
    assert not names_a_model(str(run)) and not names_a_model("nowhere")


def test_nothing_to_measure_on_is_refused(run):
    with pytest.raises(GrouperError, match="or --tasks"):
        evaluate(run)


# By hand


def test_rows_are_filled_noted_and_told_by_their_layouts(tmp_path):
    """Row 4 is layout 1 under another merge, refined; the original is measured as it is."""
    front = made_up_run(tmp_path / "run", scored(*SEARCHED)).front()
    folder = RunFolder(tmp_path / "run")
    front.table = pd.concat([front.table, front.table.iloc[[1]].assign(merge="mean+refine")], ignore_index=True)
    refined = SimpleNamespace(errors=lambda layer: (0.5, 0.25))
    regrouper = SimpleNamespace(
        ranks=Ranks(), calibration=None, model=None, refined=lambda layout, merge, refine, folder: refined
    )
    values = {"nll": 2.5, "kl": 0.125, "kl_se": 0.5}
    sample = {"prompt": "Once", "text": " upon"}
    meter = SimpleNamespace(
        sample=lambda regrouped=None: sample if regrouped else {}, regrouper=regrouper, texts={"": None},
        of_original=lambda: {"nll": 2.0, "kl": 0.0, "kl_se": 0.0}, of_kept=lambda *given: {},
        of_layout=lambda layout, merged, _ranks: {**values, "nll": 2.5 if merged is refined else math.nan},
    )  # fmt: skip
    told = []
    fitting = lambda layout: MERGES["mean"]  # noqa: E731
    fill_in(folder, front, [0, 4], meter, fitting, RefineOptions(), lambda *given: told.append(given))
    assert told == [
        (1, 2, "layout 0, original, 100%: 2.0000 nats per token"),
        (2, 2, "layout 1, qcqa-ac, 50%: 2.5000 nats per token"),
    ]
    table = folder.front().table
    assert table.loc[[0, 4], ["nll", "kl", "kl_se"]].to_numpy().tolist() == [[2.0, 0.0, 0.0], [2.5, 0.125, 0.5]]
    assert table["nll"].isna().tolist() == [False, True, True, True, False]
    assert table["on_nll_front"].fillna(-1).tolist() == [1, -1, -1, -1, 1]
    assert folder.read_refined().to_numpy().tolist() == [[1, "mean+refine", 0, 0.5, 0.25]]
    assert read_samples(folder.path) == [{"layout": 1, "merge": "mean+refine", **sample}]
    regrouper.merged = lambda *given: None
    with pytest.raises(GrouperError, match="layout 2 gives nan nats per token"):
        fill_in(folder, front, [2], meter, fitting, None, lambda *given: None)


def test_rows_that_are_left_over_are_measured_by_all_ranks_together(tmp_path):
    front = made_up_run(tmp_path / "run", scored(*SEARCHED)).front()
    folder = RunFolder(tmp_path / "run")

    def work(ranks: Ranks) -> tuple[list, list]:
        measured = []

        def of_layout(layout, merged, together: Ranks) -> dict[str, float]:
            measured.append((layout.layers[0].kv_heads, together.size))
            return {"nll": float(layout.layers[0].kv_heads)}

        regrouper = SimpleNamespace(ranks=ranks, calibration=None, model=None, merged=lambda *given: None)
        meter = SimpleNamespace(
            sample=lambda regrouped=None: {}, regrouper=regrouper, texts={"": None}, originals={}, of_layout=of_layout,
            of_kept=lambda *given: {},
        )  # fmt: skip
        mine = ParetoFront(front.table.copy())
        fill_in(folder, mine, [1, 2, 3], meter, lambda layout: MERGES["mean"], None, lambda *given: None)
        return measured, mine.table["nll"].tolist()[1:]

    heads = [folder.layout(number).layers[0].kv_heads for number in (1, 2, 3)]
    (first, nll), (second, same) = side_by_side(2, work)
    assert first == [(heads[0], 1), (heads[2], 2)] and second == [(heads[1], 1), (heads[2], 2)]
    assert nll == same == [float(n) for n in heads]


def test_merges_have_the_runs_parameters_unless_others_are_given(reader, text, tmp_path, monkeypatch):
    options = SearchOptions(fitness="weight", set=("spectral.rescale=false",))
    rows = scored(("original", 0.0, range(8)), ("qcqa-ac", 0.5, [0, 1] * 4), layers=3, query_heads=8, head_dim=16)
    made_up_run(tmp_path / "run", rows, options, str(reader), Checkpoint.open(reader).fingerprint)
    asked = []
    monkeypatch.setattr(evaluation, "fill_in", lambda folder, front, todo, meter, fitting, *more: asked.append(fitting))
    for more in ({"merge": "spectral"}, {"merge": "spectral", "set": ("spectral.rescale=true",)}, {}):
        evaluate(tmp_path / "run", TextSource(str(text)), window=64, limit=2, layouts="0,1", **more)
    found = [fitting.keywords["merge"] for fitting in asked]
    assert [merge.name for merge in found] == ["spectral", "spectral", "mean"], "the run's own unless given"
    assert [merge.rescale for merge in found[:2]] == [False, True]
