"""A whole run: files, resuming, determinism, picking, measuring."""

import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import logits

from grouper import Architecture, Checkpoint, GrouperError, HeadLayout, compress
from grouper.calibration import parts
from grouper.calibration.calibration import Calibration
from grouper.calibration.seen import Seen
from grouper.calibration.source import TextSource
from grouper.calibration.text import digest, windows
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.machine import Machine
from grouper.refinement.options import RefineOptions
from search import SearchOptions, Selection, evaluate, export_from_run, pick, search
from search.run import kept_where
from search.runs.folder import RunFolder
from search.runs.pareto import COLUMNS

pytestmark = pytest.mark.drawn
QUICK = SearchOptions(fitness="weight", generations=4, population=24)


def contents(folder):
    """Every file but run.json's timings."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    settings = json.loads(files.pop("run.json"))
    return files, {k: v for k, v in settings.items() if k not in ("timings", "jobs")}


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    search(models("llama"), folder / "run", QUICK)
    return folder / "run"


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    search("demo", folder / "run", QUICK)
    return folder / "run"


def test_the_csv_says_what_the_layouts_say(run):
    table = pd.read_csv(run / "pareto.csv")
    assert list(table.columns) == COLUMNS and table["layout"].tolist() == list(range(len(table)))
    assert table.loc[0, ["method", "kv_ratio", "error", "deploy"]].tolist() == ["original", 1.0, 0.0, "stock"]
    for _, row in table.iterrows():
        layout = RunFolder(run).layout(row["layout"])
        assert row["kv_heads"] == ";".join(layout.kv_heads) and row["deploy"] == layout.export_class
        assert math.isclose(row["kv_ratio"], layout.kv_ratio) and row[
            "kv_bytes_per_token"
        ] == layout.kv_bytes_per_token("bfloat16")
    points = table[["kv_bytes_per_token", "error"]].to_numpy()
    beaten = [((points <= p).all(1) & (points < p).any(1)).any() for p in points]
    assert table["on_front"].tolist() == [int(not b) for b in beaten]
    for count in range(1, 8):
        uniform = table[table["kv_heads"] == ";".join([str(count)] * 3)]
        assert "neighbour" in set(uniform["method"]) and set(uniform["method"]) - {"neighbour", "random"}
        if 8 % count == 0:
            assert ((uniform["deploy"] == "stock") & uniform["method"].isin(["qcqa-ec", "qcqa-ac"])).any()


def test_the_same_seed_gives_the_same_files_and_another_one_others(run, models, tmp_path):
    search(models("llama"), tmp_path / "a", QUICK)
    search(models("llama"), tmp_path / "b", SearchOptions(fitness="weight", generations=4, population=24, seed=1))
    assert contents(tmp_path / "a") == contents(run)
    assert contents(tmp_path / "b")[0]["layers/00.csv"] != contents(run)[0]["layers/00.csv"]


def test_layers_searched_in_parallel_give_the_same_files(run, models, tmp_path):
    search(models("llama"), tmp_path / "a", QUICK, jobs=2)
    assert contents(tmp_path / "a") == contents(run)


@pytest.mark.parametrize("stop", ["in layer 1", "before the front", "half a layout"])
def test_a_killed_run_resumes_to_the_same_files(run, models, tmp_path, stop):
    class Killed(Exception):
        pass

    def progress(done, total, note):
        if stop == "in layer 1" and note.startswith("layer 1, qcqa-ac, generation 2"):
            raise Killed

    try:
        search(models("llama"), tmp_path / "a", QUICK, machine=Machine(progress=progress))
    except Killed:
        assert sorted(p.name for p in (tmp_path / "a" / "layers").glob("??.csv")) == ["00.csv"]
    if stop != "in layer 1":
        (tmp_path / "a" / "pareto.csv").unlink()
        (tmp_path / "a" / "pareto.svg").unlink()
    if stop == "half a layout":
        (tmp_path / "a" / "layouts" / "0003.json").write_text("{")
    search(models("llama"), tmp_path / "a", QUICK)
    assert contents(tmp_path / "a") == contents(run)


@pytest.mark.parametrize(
    ("file", "text"), [("layers/01.csv", "method,groups\nx,a|b\n"), ("run.json", "{"), ("pareto.csv", "a,b\n1,2\n")]
)
def test_a_damaged_run_is_refused_in_one_line(run, models, tmp_path, file, text):
    shutil.copytree(run, tmp_path / "a")
    (tmp_path / "a" / file).write_text(text)
    with pytest.raises(GrouperError, match=file.split("/")[-1]):
        search(models("llama"), tmp_path / "a", QUICK)


def test_resuming_does_not_search_again(run, models, tmp_path):
    shutil.copytree(run, tmp_path / "a")
    search(models("llama"), tmp_path / "a", QUICK, machine=Machine(progress=lambda *_: pytest.fail("searched again")))


def test_another_search_into_the_same_folder_is_refused(run, models, tmp_path):
    shutil.copytree(run, tmp_path / "a")
    with pytest.raises(GrouperError, match="another seed"):
        search(models("llama"), tmp_path / "a", SearchOptions(fitness="weight", generations=4, population=24, seed=9))
    with pytest.raises(GrouperError, match="another fingerprint"):
        search(models("llama", seed=5), tmp_path / "a", QUICK)
    search(
        models("llama"),
        tmp_path / "a",
        SearchOptions(fitness="weight", generations=4, population=24, seed=9),
        overwrite=True,
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep")
    with pytest.raises(GrouperError, match="not written by Grouper"):
        search(models("llama"), tmp_path / "mine", QUICK)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": ("gradient",)}, "unknown method 'gradient'"), ({"fitness": "luck"}, "unknown fitness"),
        ({"paper": "x"}, "unknown paper"),
        ({"kv_heads_multiple_of": 8}, "multiple of 8"), ({"kv_heads_multiple_of": 0}, "multiple of 0"),
        ({"kv_dtype": "int3"}, "unknown KV dtype"),
        ({"population": 1}, "population of 1"), ({"stage2": "luck"}, "unknown stage 2"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met_write_nothing(models, tmp_path, options, message):
    with pytest.raises(GrouperError, match=message):
        search(models("llama"), tmp_path / "run", SearchOptions(**options))
    assert not (tmp_path / "run").exists()


def test_a_model_with_one_kv_head_is_refused(models, tmp_path):
    with pytest.raises(GrouperError, match="MQA already"):
        search(models("llama", heads=8, kv_heads=1), tmp_path / "run", QUICK)
    assert not (tmp_path / "run").exists()


def test_kv_heads_in_multiples(models, tmp_path):
    front = search(
        models("llama"),
        tmp_path / "run",
        SearchOptions(fitness="weight", generations=4, population=24, kv_heads_multiple_of=4),
    )
    assert {int(k) for row in front.table["kv_heads"] for k in row.split(";")} == {4, 8}


def test_the_papers_recipe_and_the_exact_method(run, models, tmp_path):
    paper = search(models("llama"), tmp_path / "paper", SearchOptions(paper="qcqa", generations=10, population=50))
    exact = search(models("llama"), tmp_path / "exact", SearchOptions(method=("exact",), fitness="weight"))
    assert json.loads((tmp_path / "paper" / "run.json").read_text())["stage2"] == "nsga2"
    assert paper.table["error"].max() > exact.table["error"].max(), "the paper's error is not normalised"
    ours = RunFolder(run).front()
    assert ours.hypervolume(reference=(1.0, 4.0)) <= exact.hypervolume(reference=(1.0, 4.0)) + 1e-9


def test_a_run_keeps_what_was_calibrated_for_the_other_commands(reader, text, tmp_path, monkeypatch):
    """Moments of the same model, text and tokens are collected once; export may be given the run's text again."""
    calibrated, told = [], []
    collect = compress.collect_moments
    monkeypatch.setattr(compress, "collect_moments", lambda *given: calibrated.append(1) or collect(*given))
    run, options = tmp_path / "run", replace(QUICK, fitness="spectral", text=str(text), tokens=2048, window=128)
    search(reader, run, options, machine=Machine(tell=told.append))
    files = sorted((run / "moments").glob("*/*"))
    size = sum(file.stat().st_size for file in files) / 1e6
    assert len(files) == 3 and told == [
        f"calibration kept in {run / 'moments'} ({size:,.1f} MB); --no-keep-calibration turns that off"
    ]
    evaluate(run, TextSource(str(text)), window=64, limit=2, layouts="3")
    given = Calibration(TextSource(str(text)), 2048, 128)
    for name, calibration in (("own", None), ("given", given)):
        export_from_run(run, tmp_path / name, Selection(layout=3), calibration)
    assert calibrated == [1] and weights_of(tmp_path / "own") == weights_of(tmp_path / "given")
    export_from_run(run, tmp_path / "other", Selection(layout=3), replace(given, tokens=1024))
    assert calibrated == [1, 1] and sorted((run / "moments").glob("*/*")) == files, "other tokens are not kept"
    search(reader, run, replace(options, fitness="weight"), overwrite=True, keep_calibration=False)
    assert not list((run / "moments").glob("*/*"))
    export_from_run(run, tmp_path / "without", Selection(layout=3))
    assert len(calibrated) == 3


def weights_of(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_moments_that_are_larger_than_the_model_are_not_kept(reader, tmp_path):
    config = Checkpoint.open(reader).config
    size = 4 * 3 * (Architecture.of(config).hidden_size + 1) ** 2
    large, small = (SimpleNamespace(config=config, nbytes=nbytes) for nbytes in (size + 1, size))
    run = tmp_path / "run"
    assert kept_where(True, run, large) == run / "moments"
    assert kept_where(True, run, small) is kept_where(False, run, large) is None
    assert kept_where("other", run, small) == "other"


def test_asymgqas_recipe_is_judged_by_the_merged_models_loss(reader, text, tmp_path, monkeypatch):
    losses = []
    monkeypatch.setattr("search.methods.loss_oracle.HELD_OUT", 512)
    monkeypatch.setattr(
        "search.methods.loss_oracle.nll", lambda model, windows: losses.append(nll(model, windows)) or losses[-1]
    )
    options = SearchOptions(paper="asymgqa", text=str(text), tokens=2048, window=128)
    with pytest.raises(GrouperError, match="--text"):
        replace(options, text=None).resolved()
    told, of_steps = [], 3 * ((6 + 2) * 11 + 2)  # 10 steps and a start for each count
    front = search(
        reader, tmp_path / "run", options, machine=Machine(tell=lambda line: told.append((line, len(losses))))
    )
    (line, before), (kept, _) = told
    assert kept.startswith("calibration kept in ")
    assert before == 2, "what is timed, and nothing else, comes before the estimate"
    assert re.fullmatch(rf"judging {of_steps} groupings by the model's loss, [\d.]+ s each: about \d+ s", line)
    counts = {c for layer in range(3) for c in RunFolder(tmp_path / "run").read_layer(layer, 8, 8)}
    assert counts >= {"asymgqa", "asymgqa-sym", "ward"} and len(losses) == 2 + of_steps
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["fitness"], settings["stage2"], set(front.table["merge"])) == ("activation", "none", {"mean"})
    assert {"asymgqa", "asymgqa-sym"} <= set(front.table["method"]) and "ragged" not in set(front.table["deploy"])
    found = len(losses)
    search(reader, tmp_path / "run", options)
    assert len(losses) == found, "what is found is kept"


def test_a_planted_model_is_regrouped_without_loss(planted, tmp_path, prompt):
    folder, labels = planted
    front = search(folder, tmp_path / "run", QUICK)
    found = pick(front, "mean", kv_ratio="1/2")
    assert found.row["error"] == 0 and found.row["deploy"] == "stock"
    assert RunFolder(tmp_path / "run").layout(found.layout) == HeadLayout.from_labels(labels, 8, 16)
    export_from_run(tmp_path / "run", tmp_path / "out", Selection(kv_ratio="1/2"))
    assert (logits(tmp_path / "out", prompt) - logits(folder, prompt)).abs().max() < 1e-4


def test_changed_text_is_noticed_where_a_run_would_go_on(reader, tmp_path):
    text = tmp_path / "text.txt"
    options = SearchOptions(fitness="weight", generations=2, population=16, text=str(text), tokens=256, window=64)
    text.write_text("Four score and seven years ago our fathers brought forth. " * 60)
    search(reader, tmp_path / "run", options)
    search(reader, tmp_path / "run", options)
    text.write_text("When in the course of human events it becomes necessary. " * 60)
    with pytest.raises(GrouperError, match="another text_digest"):
        search(reader, tmp_path / "run", options)


def test_a_run_of_an_older_version_goes_on_with_text_of_which_nothing_was_set_aside(reader, tmp_path, monkeypatch):
    """And is exported refined on just that; a new run and one that replaces it set stretches aside."""
    monkeypatch.setattr(parts, "LONG", 8000)
    monkeypatch.setattr(parts, "GAP", 40)
    (tmp_path / "text.txt").write_text("".join(f"some words and {i} more of them\n" for i in range(400)))
    options = replace(QUICK, text=str(tmp_path / "text.txt"), tokens=1024, window=64)
    run, place = tmp_path / "run", tmp_path / "run" / "run.json"
    search(reader, run, options)
    new = json.loads(place.read_text())
    checkpoint, whole = Checkpoint.open(reader), options.calibration(set_aside=False)
    older = digest(Regrouper(checkpoint, whole).windows(1024))
    assert new["set_aside"] and new["text_digest"] != older
    (run / "digests" / "run.json").unlink()
    place.write_text(json.dumps({k: v for k, v in {**new, "text_digest": older}.items() if k != "set_aside"}))
    search(reader, run, options)
    assert RunFolder(run).settings.text_digest == older and not RunFolder(run).settings.set_aside
    refine = RefineOptions(steps=2, tokens=512)
    assert export_from_run(run, tmp_path / "out", Selection(kv_ratio="1/2"), refine=refine).not_refined is None
    seen = Seen.from_data(json.loads((tmp_path / "out" / "grouper.json").read_text())["refined"]["seen"])
    older_text, new_text = (Regrouper(checkpoint, c).texts(refine) for c in (whole, options.calibration()))
    assert all(seen.touches(text).all() for text in older_text)
    assert not all(seen.touches(text).all() for text in new_text)
    search(reader, run, options, overwrite=True)
    assert RunFolder(run).settings.text_digest == new["text_digest"] and RunFolder(run).settings.set_aside


def test_a_text_that_was_tokenised_for_a_run_is_not_tokenised_again(reader, tmp_path, monkeypatch):
    words = "".join(f"some words and {i} more of them\n" for i in range(4000))
    for name in ("text", "other"):
        (tmp_path / f"{name}.txt").write_text(f"{name} {words}")
    options = replace(QUICK, text=str(tmp_path / "text.txt"), tokens=1024, window=64, fitness="spectral")
    measured = TextSource(str(tmp_path / "other.txt"), purpose="evaluation")
    calibration, chosen = options.calibration(), Selection(kv_ratio="1/2")
    refine = RefineOptions("attention", steps=2, tokens=512)

    def work(export: str) -> None:
        search(reader, tmp_path / "run", options)
        evaluate(tmp_path / "run", measured, window=64, limit=4, layouts="0,3")
        export_from_run(tmp_path / "run", tmp_path / export, chosen, calibration, refine)

    work("once")
    before = contents(tmp_path / "run")
    monkeypatch.setattr("grouper.calibration.text.load_tokenizer", lambda _: pytest.fail("tokenised again"))
    work("again")
    assert contents(tmp_path / "run") == before
    (tmp_path / "other.txt").write_text(f"Other {words}")
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        evaluate(tmp_path / "run", measured, window=64, limit=4, layouts="0,3")


def test_parameters_are_recorded_and_change_what_is_found(models, tmp_path):
    folder, options = models("llama"), replace(QUICK, method=("asymgqa",))
    plain = search(folder, tmp_path / "plain", options)
    other = search(folder, tmp_path / "set", replace(options, set=("asymgqa.walks=1", "asymgqa.nearest=1")))
    assert json.loads((tmp_path / "set" / "run.json").read_text())["set"] == ["asymgqa.walks=1", "asymgqa.nearest=1"]
    assert not plain.same_layouts(other)
    with pytest.raises(GrouperError, match="another set"):
        search(folder, tmp_path / "plain", replace(options, set=("asymgqa.walks=2",)))
    with pytest.raises(GrouperError, match="ward has no such parameter, it has none"):
        search(folder, tmp_path / "none", replace(options, set=("ward.walks=2",)))
    assert not (tmp_path / "none").exists()


def test_a_run_of_an_older_version_goes_on(run, models, tmp_path):
    """Before parameters and the column also_found_by."""
    shutil.copytree(run, tmp_path / "a")
    settings = json.loads((tmp_path / "a" / "run.json").read_text())
    del settings["set"]
    (tmp_path / "a" / "digests" / "run.json").unlink()
    (tmp_path / "a" / "run.json").write_text(json.dumps(settings))
    table = pd.read_csv(tmp_path / "a" / "pareto.csv").drop(columns="also_found_by")
    table.to_csv(tmp_path / "a" / "pareto.csv", index=False)
    assert RunFolder(tmp_path / "a").front().table["also_found_by"].eq("").all()
    search(models("llama"), tmp_path / "a", QUICK, machine=Machine(progress=lambda *_: pytest.fail("searched again")))
    assert contents(tmp_path / "a")[0] == contents(run)[0]


def test_measuring_a_real_model(demo_run, tmp_path):
    shutil.copytree(demo_run, tmp_path / "run")
    source = TextSource("demo", purpose="evaluation")
    table = RunFolder(demo_run).front().table
    half = table[(table["kv_ratio"] == 0.5) & (table["deploy"] == "stock")].set_index("method")["layout"]
    numbers = f"0,{half['qcqa-ec']},{half['neighbour']}"
    front = evaluate(tmp_path / "run", source, layouts=numbers, limit=4, window=128)
    nll = front.table.set_index("method")["nll"].dropna()
    assert 3 < nll["original"] < 5 and nll["original"] < nll["qcqa-ec"] and nll["original"] < nll["neighbour"]
    assert front.table["perplexity"].dropna().to_numpy() == pytest.approx(np.exp(nll.to_numpy()))
    before = (tmp_path / "run" / "pareto.csv").read_bytes()
    evaluate(
        tmp_path / "run",
        source,
        layouts=numbers,
        limit=4,
        window=128,
        machine=Machine(progress=lambda *_: pytest.fail("measured again")),
    )
    assert (tmp_path / "run" / "pareto.csv").read_bytes() == before
    with pytest.raises(GrouperError, match="other text, windows"):
        evaluate(tmp_path / "run", source, layouts="0", limit=3, window=128)
    again = evaluate(tmp_path / "run", source, layouts="0", limit=5, window=128, overwrite=True)
    assert again.table["nll"].notna().sum() == 1


def test_nats_per_token_are_what_transformers_says(demo_run):
    from transformers import AutoModelForCausalLM

    from grouper import Checkpoint
    from grouper.calibration.text import load_tokenizer
    from grouper.checkpoint.checkpoint import DEMO
    from grouper.evaluation.perplexity import nll

    tokens = windows(TextSource("demo", purpose="evaluation"), load_tokenizer(Checkpoint.open("demo")), 64, 6)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.inference_mode():
        theirs = [model(row[None], labels=row[None]).loss.item() for row in tokens]
    assert nll(model, tokens) == pytest.approx(sum(theirs) / 6, rel=1e-5)


def test_text_too_short_or_not_text(tmp_path):
    from grouper import Checkpoint
    from grouper.calibration.text import load_tokenizer

    tokenizer = load_tokenizer(Checkpoint.open("demo"))
    (tmp_path / "short.txt").write_text("Four score and seven years ago")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"no": 1}\n')
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("short.txt", "too few for one window"),
        ("rows.jsonl", "line 2"),
        ("binary.txt", "not UTF-8"),
        ("none", "cannot read"),
    ):
        with pytest.raises(GrouperError, match=message):
            windows(TextSource(str(tmp_path / name)), tokenizer, 64)
    with pytest.raises(GrouperError, match="`text=FILE`"):
        TextSource()
    (tmp_path / "good.jsonl").write_text('{"text": "one two three four"}\n' * 40)
    rows = windows(TextSource(str(tmp_path / "good.jsonl")), tokenizer, 32)
    assert rows.shape[1] == 32 and (rows == tokenizer.eos_token_id).sum() > 10
