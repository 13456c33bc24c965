"""The main job on real weights: SmolLM2-135M, 9 query heads over 3 KV heads. `make test-real` fetches them and runs
this."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_samples import check_identity, check_planted, check_reference, check_refined
from safetensors.torch import load_file, save_file

from grouper import Checkpoint, HeadLayout, UptrainOptions, uptrain_model
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer, windows
from grouper.evaluation.perplexity import nll
from grouper.evaluation.tasks import TaskOptions
from grouper.refinement.options import RefineOptions
from search import SearchOptions, Selection, evaluate, export_from_run, search
from search.evaluation.models import evaluate_model

ROOT = Path(__file__).parent.parent
REAL = ROOT / ".real-models"
MODEL = REAL / "SmolLM2-135M-Instruct"
CALIBRATION, EVALUATION = (REAL / f"wikipedia-{name}.txt" for name in ("calibration", "evaluation"))

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(os.cpu_count() or 1)  # these tests run alone
    folder = tmp_path_factory.mktemp("real") / "run"
    search(MODEL, folder, SearchOptions(text=str(CALIBRATION), tokens=12_288))
    return folder


def two_thirds(front, method: str) -> int:
    table = front.table
    return int(table[(table["kv_heads"] == ";".join(["2"] * 30)) & (table["method"] == method)].iloc[0]["layout"])


def test_search_evaluate_export_load_generate(run, tmp_path):
    from transformers import AutoModelForCausalLM

    text = TextSource(str(EVALUATION))
    options = {"limit": 8, "window": 512}
    front = evaluate(run, text, layouts="0", **options)
    neighbours, ours = two_thirds(front, "neighbour"), two_thirds(front, "qcqa-ac")
    evaluate(run, text, layouts=str(neighbours), merge="mean", **options)
    front = evaluate(run, text, layouts=str(ours), **options)
    losses = front.table.dropna(subset="nll").set_index("layout")["nll"]
    assert 2 < losses[0] < 4 and losses[0] < losses[ours] < losses[0] + 1 < losses[neighbours]

    done = export_from_run(run, tmp_path / "out", Selection(kv_ratio="2/3", deploy="padded"))
    assert done.self_test.passed and done.kv_bytes_per_token == (23_040, 15_360)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=True).eval()
    tokenizer = load_tokenizer(Checkpoint.open(tmp_path / "out"))
    assert nll(model, windows(text, tokenizer, 512, 8)) == pytest.approx(
        losses[ours], abs=0.02
    )  # weights are bfloat16 on disk
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])


def test_refinement_helps_a_real_model(run, tmp_path):
    """A third of the cache, few tokens and steps: a real model's outliers must not break refinement."""
    text = TextSource(str(EVALUATION))
    front = evaluate(run, text, layouts="0", limit=8)
    number = int(
        front.table[(front.table["kv_heads"] == ";".join(["1"] * 30)) & (front.table["method"] != "neighbour")].iloc[0][
            "layout"
        ]
    )
    for refine in (None, RefineOptions(tokens=4096)):
        front = evaluate(run, text, layouts=str(number), refine=refine, limit=8)
    losses = front.table[front.table["layout"] == number].dropna(subset="nll").set_index("merge")["nll"]
    assert losses["spectral+refine"] < losses["spectral"] - 0.2


def test_export_with_refinement_by_text(run, tmp_path):
    calibration, refine = Calibration(TextSource(str(CALIBRATION)), 12_288, 256), RefineOptions(tokens=1024)
    done = export_from_run(run, tmp_path / "out", Selection(kv_ratio="1/3"), calibration, refine)
    assert done.export_class == "stock" and done.self_test.passed


def test_tasks_and_closeness_of_the_original_and_what_is_made_of_it(run, tmp_path):
    """Two thirds of the cache: the spectral merge is nearer than the mean, refined nearer still; a short training from
    the mean makes up for much of it. Tasks run on each."""
    pytest.importorskip("lm_eval")  # the extra `eval`
    tasks = TaskOptions(("arc_easy", "piqa"), REAL / "tasks", limit=25)
    text, common = TextSource(str(EVALUATION)), {"tasks": tasks, "limit": 8}
    front = evaluate(run, text, layouts="0", overwrite=True, **common)
    neighbours, ours = two_thirds(front, "neighbour"), two_thirds(front, "qcqa-ac")
    evaluate(run, text, layouts=str(neighbours), merge="mean", **common)
    table = evaluate(run, text, layouts=str(ours), **common).table
    rows = {"mean": table[(table["layout"] == neighbours) & (table["merge"] == "mean")].iloc[0]}
    rows["spectral"] = table[(table["layout"] == ours) & (table["merge"] == "spectral")].iloc[0]
    calibration, refine = Calibration(TextSource(str(CALIBRATION)), 12_288, 256), RefineOptions(tokens=4096)
    export_from_run(run, tmp_path / "refined", Selection(layout=ours), calibration, refine)
    export_from_run(run, tmp_path / "bare", Selection(layout=neighbours, merge="mean"))
    options = UptrainOptions(tokens=12_288, step_tokens=1024, window=256, validate=4)
    uptrain_model(tmp_path / "bare", tmp_path / "healed", TextSource(str(CALIBRATION)), options, base=str(MODEL))
    for name in ("refined", "healed"):
        found = evaluate_model(tmp_path / name, text, base=str(MODEL), **common)
        assert found.original["arc_easy,acc"] == table.loc[0, "arc_easy,acc"]
        rows[name] = found.values
    kl = {name: row["kl"] for name, row in rows.items()}
    assert kl["mean"] > kl["spectral"] > kl["refined"] and kl["healed"] < kl["mean"] / 2, kl
    assert all(0 <= rows[name][f"{task},acc"] <= 1 for name in rows for task in ("arc_easy", "piqa"))


# The matrix that every family passes, on real weights.


def layouts() -> dict[str, HeadLayout]:
    """Of 3 KV heads: one, or two in groups of 2 and 1, or one or two."""
    rows = {"stock": [[0, 0, 0]] * 30, "padded": [[0, 1, 0], [0, 1, 1]] * 15, "ragged": [[0, 1, 0], [0, 0, 0]] * 15}
    return {kind: HeadLayout.from_labels(r, 9, 64) for kind, r in rows.items()}


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return windows(TextSource(str(EVALUATION)), load_tokenizer(Checkpoint.open(MODEL)), 32, 12)


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory) -> Path:
    """The same model, so that a merge's new basis is not rounded to bfloat16. Rounded to float32, the model's outliers
    and 30 layers make 2e-4 of it, on logits up to 20."""
    folder = tmp_path_factory.mktemp("float32")
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    tensors = {name: tensor.float() for name, tensor in load_file(MODEL / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return folder


@pytest.mark.parametrize("merge", ["mean", "spectral"])
def test_the_identity_grouping_is_the_original(tmp_path, tokens, merge):
    check_identity(MODEL, tmp_path, tokens[:2], merge)


def test_layouts_are_the_index_gather_reference_and_generate(tmp_path, tokens):
    check_reference(MODEL, tmp_path, tokens[:2], layouts())


def test_a_planted_grouping_is_found_and_lossless(in_float32, tmp_path, tokens):
    check_planted(in_float32, tmp_path, tokens[:2], [[0, 1, 0], [0, 1, 1], [0, 0, 1]] * 10, tolerance=1e-3)


def test_search_spectral_merge_refinement_export_reload(tmp_path, tokens):
    check_refined(MODEL, tmp_path, tokens[:2], [layouts()["ragged"], layouts()["stock"]], tokens)


def test_the_notebook_runs(tmp_path):
    """Every cell of examples/regroup_smollm2.ipynb, on the real model."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "regroup_smollm2.ipynb", as_version=4)
    given = {"MODEL": str(MODEL), "TEXT": str(CALIBRATION), "OTHER": str(EVALUATION), "PYTHONPATH": str(ROOT)}
    client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={**os.environ, **given})
    outputs = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "stock SelfTest" in outputs and "Paris" in outputs and (tmp_path / "report.html").is_file()


def test_sentence_vectors_of_a_real_encoder(tmp_path):
    """all-MiniLM-L6-v2 at half of its K and V heads: similarities of sentences stay, where averaging loses them."""
    command = [sys.executable, ROOT / "bench" / "minilm.py", "--tokens", "8192", "--shares", "0.5", "--json"]
    places = os.pathsep.join((str(ROOT), str(ROOT / "bench")))
    subprocess.run([*command, tmp_path / "found.json"], env={**os.environ, "PYTHONPATH": places}, check=True)
    found = {row["name"]: row for row in json.loads((tmp_path / "found.json").read_text())}
    spearman = {name: row["spearman"] for name, row in found.items()}
    assert spearman["spectral, refined"] > spearman["spectral"] > spearman["neighbours, mean"]
    assert found["spectral, refined"]["cosine"] > 0.9
