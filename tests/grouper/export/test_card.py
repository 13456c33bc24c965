"""Cards, benchmark scores and reports of exports, number by number."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from encoder_samples import architecture_of

from grouper import Architecture, Checkpoint, ExportOptions, HeadLayout, LayerLayout, export
from grouper.compress import Regrouper
from grouper.export.card import model_card
from grouper.export.eval_results import BENCHMARKS, write_eval_results
from grouper.export.format import SelfTest
from grouper.export.hf.write import HuggingFace, copy_companions
from grouper.export.options import ExportOptions as Options
from grouper.export.write import Exported, already_written
from grouper.export.write import kv_bytes as bytes_of_layout
from grouper.merging import MERGES

LAYOUT = HeadLayout.from_labels([[0, 0, 0, 1], [0, 1, 2, 1], [0, 0, 0, 0]], 8, 16)  # 2, 3 and 1 KV heads
REPORT = SimpleNamespace(
    kv_bytes_per_token=(768, 384), kv_bytes_per_source_token=(0, 0), weight_bytes=(1_234_567, 1_000_000),
    engines=["transformers", "vLLM"], export_class="ragged", loader="AutoModelForCausalLM", tp=1,
    padding_bytes=0,
)  # fmt: skip


def card(checkpoint, layout=LAYOUT, report=REPORT, **facts) -> list[str]:
    made = model_card(checkpoint, layout, {"merge": "mean", **facts}, report, "transformers", "LOADING")
    return made.split("\n")


@pytest.fixture
def checkpoint(models, tmp_path):
    """One whose folder may be written to."""
    import shutil

    shutil.copytree(models("llama", heads=8, kv_heads=4), tmp_path / "tiny")
    return Checkpoint.open(tmp_path / "tiny")


def test_the_card_of_a_ragged_model(checkpoint):
    """6 KV heads of 12; the larger counts first."""
    lines = card(checkpoint, method="qcqa-ac", search="grouper search x", uptrain="grouper uptrain y")
    saved = "384 bytes of KV cache per token in bfloat16 instead of 768 (50.0%)"
    weights = "1,000,000 bytes of weights instead of 1,234,567."
    assert f"tiny with 3/2/1 KV heads a layer instead of 4: {saved}, {weights}" in lines
    assert "Heads were grouped by `qcqa-ac` and merged by `mean`. Runs in transformers, vLLM." in lines
    at = lines.index("| layer | KV heads | query heads per KV head |")
    assert lines[at + 2 : at + 5] == ["| 0 | 2 | 6, 2 |", "| 1 | 3 | 2, 4, 2 |", "| 2 | 1 | 8 |"]
    commands = lines.index("To make it again:")
    assert lines[commands + 3 : commands + 5] == ["grouper search x", "grouper uptrain y"] and "LOADING" in lines
    assert not any(line.startswith(("base_model", "Refined", "Then trained", "| measured")) for line in lines)
    assert "grouped by `hand`" in "\n".join(card(checkpoint))


def test_the_whole_card_line_by_line(checkpoint):
    """A base model's card that is not UTF-8 throughout, without front matter."""
    (checkpoint.folder / "README.md").write_bytes("Köpfe ".encode() + b"\xff\n")
    lines = card(
        checkpoint, measured={"nats per token": [2.0, 2.125]}, refined={"scope": "block", "tokens": 65536, "steps": 3},
        uptrained={"method": "continued", "tokens": 1000, "steps": 2}, search="s", export="e", uptrain="u",
    )  # fmt: skip
    tables = [
        "| measured | original | this model |", "| --- | --- | --- |", "| nats per token | 2.0000 | 2.1250 |", "",
        "Refined layer by layer (scope block) on 65,536 tokens, 3 steps each.", "",
        "Then trained by `continued` on 1,000 tokens, 2 steps; `uptraining.jsonl` holds what was measured on the way.",
        "", "| layer | KV heads | query heads per KV head |", "| --- | --- | --- |",
        "| 0 | 2 | 6, 2 |", "| 1 | 3 | 2, 4, 2 |", "| 2 | 1 | 8 |", "",
    ]  # fmt: skip
    assert lines == [
        "---", "library_name: transformers", "tags:", "- grouped-query-attention", "- kv-cache", "- kv-grouper", "---",
        "", "# tiny, regrouped", "",
        "tiny with 3/2/1 KV heads a layer instead of 4: 384 bytes of KV cache per token in bfloat16 instead of 768 "
        "(50.0%), 1,000,000 bytes of weights instead of 1,234,567.",
        "Heads were grouped by `hand` and merged by `mean`. Runs in transformers, vLLM.", "", "LOADING", *tables,
        "To make it again:", "", "```sh", "s", "e", "u", "```", "",
        "Made with Grouper (`pip install kv-grouper`); `grouper.json` holds which head reads which, merged from which.",
        "", "# The card of tiny", "", "Köpfe \ufffd", "",
    ]  # fmt: skip


def test_a_card_without_commands_and_without_a_card_below(checkpoint):
    """A model from the Hub is named as its base, though nobody said so."""
    lines = card(checkpoint)
    assert "To make it again:" not in lines and not any("The card of" in line for line in lines)
    assert lines[-4:-2] == ["| 2 | 1 | 8 |", ""] and lines[-1] == ""
    named = SimpleNamespace(
        folder=checkpoint.folder, config=checkpoint.config, title="some/model", dequantised_from=None
    )
    assert card(named)[1] == "base_model: some/model"


def test_the_card_says_what_a_decoder_keeps_of_its_source(encoders):
    """What an encoder's attentions have does not count in the cache: its own keep all of their heads here."""
    a = architecture_of(encoders("t5"))
    whole, half, one = a.whole_layer, LayerLayout.from_labels([h // 2 for h in range(8)]), [0] * 8
    layout = a.layout([whole, whole, half, LayerLayout.from_labels(one), half, whole])
    report = SimpleNamespace(**{**vars(REPORT), "kv_bytes_per_source_token": (1024, 576)})
    lines = card(Checkpoint.open(encoders("t5")), layout, report)
    saved = "384 bytes of KV cache per token in bfloat16 instead of 768"
    source = "576 per token of the source instead of 1,024"
    assert any(f"{saved} and {source} ({17 / 32:.1%}), 1,000,000" in line for line in lines), (
        "4 + 1 + 4 + 8 heads of 32"
    )
    assert "| decoder 0 across | 1 | 8 |" in lines and "| encoder 1 | 8 | 1, 1, 1, 1, 1, 1, 1, 1 |" in lines
    bert = architecture_of(encoders("bert")).ungrouped
    lines = card(Checkpoint.open(encoders("bert")), bert)
    assert not any("KV cache" in line for line in lines)
    assert any("8 KV heads a layer instead of 8: 1,000,000 bytes of weights" in line for line in lines)


def test_the_card_says_what_was_done_and_measured(checkpoint):
    measured = {"nats per token": [2.0, 2.125], "piqa,acc": [0.75, None]}
    lines = card(
        checkpoint, measured=measured, refined={"scope": "block", "tokens": 65536, "steps": 300},
        uptrained={"method": "distill", "teacher": "some/teacher", "tokens": 1_000_000, "steps": 20},
    )  # fmt: skip
    assert "Refined layer by layer (scope block) on 65,536 tokens, 300 steps each." in lines
    trained = "Then trained by `distill` from some/teacher on 1,000,000 tokens, 20 steps;"
    assert any(line.startswith(trained) for line in lines)
    at = lines.index("| measured | original | this model |")
    assert lines[at + 2 : at + 4] == ["| nats per token | 2.0000 | 2.1250 |", "| piqa,acc | 0.7500 |  |"]


def test_what_stays_true_of_the_base_models_front_matter(checkpoint):
    front = [
        "license: other", "license_name: own", "license_link: LICENSE.txt", "language:", "- en", "- de", "tags:", "- x",
        "pipeline_tag: text-generation", "base_model: old/one", "model-index:", "- name: y", "library_name: mlx",
    ]  # fmt: skip
    (checkpoint.folder / "README.md").write_text("\n".join(["---", *front, "---", "# Words"]))
    lines = card(checkpoint)
    assert lines[: lines.index("tags:")] == ["---", *front[:6], front[8], "library_name: transformers"]
    lines = card(checkpoint, base_model="some/model")
    assert lines[1] == "base_model: some/model" and lines[-4:] == ["# The card of some/model", "", "# Words", ""]
    assert "base_model: a/b/c" not in card(checkpoint, base_model="a/b/c"), "not a name on the Hub"


def test_scores_go_to_the_benchmarks_that_the_hub_knows(tmp_path):
    """This model's, not the original's; nothing without a metric or a value."""
    measured = {
        "arc_challenge,acc_norm": [0.5, 0.25], "arc_easy,acc": [0.75, 0.5], "mmlu": [0.4, 0.3],
        "gsm8k,exact": [0.4, None],
        "boolq,acc": [0.875, 0.75], "boolq,f1": [0.5, 0.375], "unknown,acc": [1.0, 1.0], "nats per token": [1.0, 1.0],
    }  # fmt: skip
    written = write_eval_results(tmp_path, measured)
    assert sorted(written) == ["arc_challenge_acc_norm.yaml", "arc_easy_acc.yaml", "boolq_acc.yaml", "boolq_f1.yaml"]
    found = {p.stem: yaml.safe_load(p.read_text())[0] for p in (tmp_path / ".eval_results").iterdir()}
    assert {n: (e["dataset"]["id"], e["dataset"]["task_id"], e["value"]) for n, e in found.items()} == {
        "arc_challenge_acc_norm": ("allenai/ai2_arc", "arc_challenge", 0.25),
        "arc_easy_acc": ("allenai/ai2_arc", "arc_easy", 0.5),
        "boolq_acc": ("google/boolq", "boolq", 0.75), "boolq_f1": ("google/boolq", "boolq", 0.375),
    }  # fmt: skip
    assert found["boolq_f1"]["notes"] == "lm-evaluation-harness, f1"
    owners = {"gsm8k": "openai", "hellaswag": "Rowan", "mmlu": "cais", "openbookqa": "allenai", "winogrande": "allenai"}
    assert {task: BENCHMARKS[task] for task in owners} == {task: f"{who}/{task}" for task, who in owners.items()}


def test_an_export_reports_the_layout_that_it_describes(models, tmp_path):
    """As after training: `layout` is over a model that was regrouped before."""
    folder = models("llama", heads=8, kv_heads=4)
    before = HeadLayout.from_labels([range(8)] * 3, 8, 16)
    before = replace(before, layers=tuple(LayerLayout.from_labels([h // 2 for h in range(8)]) for _ in range(3)))
    (tmp_path / "log").write_text("a line")
    done = export(
        folder, Architecture.of(Checkpoint.open(folder).config).ungrouped, tmp_path / "out", described=before,
        origin={"merge": "distill", "method": "x", "export": "grouper export z"},
        beside={"log.jsonl": tmp_path / "log"},
    )  # fmt: skip
    assert done.kv_bytes_per_token == (3 * 2 * 8 * 16 * 2, 3 * 2 * 4 * 16 * 2) == bytes_of_layout(before)
    assert done.weight_bytes == (Checkpoint.open(folder).nbytes, Checkpoint.open(tmp_path / "out").nbytes)
    facts = json.loads((tmp_path / "out" / "grouper.json").read_text())
    assert (facts["merge"], facts["deploy"], facts["base_model"]) == ("distill", "stock", folder.name)
    assert HeadLayout.from_json(json.dumps(facts["layout"])) == before
    assert (tmp_path / "out" / "log.jsonl").read_text() == "a line"
    assert facts["report"]["weight_bytes"] == list(done.weight_bytes) and "folder" not in facts["report"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["grouper"] == {"merge": "distill", "method": "x", "export": "grouper export z", "deploy": "stock"}
    again = already_written(tmp_path / "out", before, "grouper export z")
    assert again.kv_bytes_per_token == done.kv_bytes_per_token and again.export_class == "stock"
    assert again.self_test == done.self_test and Exported.from_data(done.to_data()) == done
    assert already_written(tmp_path / "out", before, "grouper export other") is None
    assert already_written(tmp_path / "out", LAYOUT, "grouper export z") is None
    assert already_written(tmp_path / "out", before, None) is None and already_written(tmp_path, before, "x") is None


def test_bytes_of_a_source_are_before_and_after(encoders, tmp_path):
    """A layout made by hand need not say what is kept of what: the model does."""
    layout = HeadLayout.from_labels([[h // 2 for h in range(8)]] * 6, 8, 16)
    assert not layout.caches
    done = export(encoders("t5"), layout, tmp_path / "out")
    assert done.kv_bytes_per_token == done.kv_bytes_per_source_token == (2 * 2 * 8 * 16 * 2, 2 * 2 * 4 * 16 * 2)
    whole = architecture_of(encoders("t5")).ungrouped
    again = export(encoders("t5"), whole, tmp_path / "again", described=replace(layout, caches=whole.caches))
    assert again.kv_bytes_per_source_token == done.kv_bytes_per_source_token, "of what is described"


@pytest.mark.parametrize(
    ("difference", "same", "passed"),
    [(0.0, 16, True), (9.9e-5, 16, True), (1e-4, 16, False), (0.0, 15, False), (float("nan"), 16, False)],
)
def test_a_self_test_passes_where_logits_and_all_tokens_agree(difference, same, passed):
    one = SelfTest(difference, same, 16)
    assert one.passed == passed and one.summary.endswith(f"{same} of 16 greedy tokens agree")
    assert replace(one, told="layer by layer").summary == "layer by layer"


def test_how_to_load_it():
    form = HuggingFace()
    line, markdown = form.how_to_load(REPORT, "out")
    assert line == 'AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)'
    assert f"model = {line}\n" in markdown and 'vllm serve "out" --trust-remote-code\n' in markdown
    assert "trust_remote_code=True to AutoTokenizer as well" in markdown
    stock = SimpleNamespace(**{**vars(REPORT), "export_class": "stock", "engines": ["vLLM"]})
    line, markdown = form.how_to_load(stock, "out")
    assert line == 'AutoModelForCausalLM.from_pretrained("out")' and 'vllm serve "out"\n' in markdown
    assert "AutoTokenizer" not in markdown
    alone = SimpleNamespace(**{**vars(REPORT), "engines": ["transformers with trust_remote_code"]})
    assert "vllm" not in form.how_to_load(alone, "out")[1]


def test_what_belongs_to_a_model_comes_along_and_no_code(tmp_path):
    kept = [
        "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
        "added_tokens.json", "vocab.json", "merges.txt", "spiece.model", "source.spm", "chat_template.jinja",
        "preprocessor_config.json", "processor_config.json", "LICENSE", "LICENSE.txt", "normalizer.json",
        "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json",
        "additional_chat_templates/tools.jinja",
    ]  # fmt: skip
    left = ["tokenizer.py", "modeling_x.py", "1_Pooling/code.py", "model.safetensors", "config.json", "README.md"]
    for name in (*kept, *left):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[]" if name == "modules.json" else name)
    (tmp_path / "out").mkdir()
    copy_companions(tmp_path / "in", tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == set(kept)


def test_tensors_around_the_layers_are_those_that_training_made(models, tmp_path):
    """And of a layer's others what refinement left; in the type that each was stored in."""
    folder = models("llama", heads=8, kv_heads=4)
    checkpoint = Checkpoint.open(folder)
    layout = HeadLayout.from_labels([[0, 0, 1, 1]] * 3, 8, 16)
    start = Regrouper(checkpoint).merged(layout, MERGES["mean"])
    names = ("model.embed_tokens.weight", "model.norm.weight")
    around = {n: (checkpoint.tensor(n) * 2).double() for n in names}
    others = {"mlp.up_proj.weight": checkpoint.tensor("model.layers.1.mlp.up_proj.weight").double() + 1}
    merged = lambda i: replace(start(i), others=others) if i == 1 else start(i)  # noqa: E731
    done = export(folder, layout, tmp_path / "out", merged=merged, around=around, options=ExportOptions())
    written = Checkpoint.open(tmp_path / "out")
    assert done.weight_bytes == (checkpoint.nbytes, written.nbytes) and written.nbytes < checkpoint.nbytes
    for name in names:
        assert (written.tensor(name) == 2 * checkpoint.tensor(name)).all()
        assert written.tensors[name].dtype == checkpoint.tensors[name].dtype
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert (written.tensor(name) == checkpoint.tensor(name) + (layer == 1)).all()


def test_defaults():
    assert (Options().max_padding, Options().shard_bytes, Options().format) == (0.1, 2 * 1024**3, "hf")
