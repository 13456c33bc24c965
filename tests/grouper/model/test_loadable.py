"""transformers is the judge of what it loads: its own loading on headers alone, before the work."""

import json
import logging
import shutil

import pytest
import torch
from encoder_samples import SAMPLES as ENCODERS
from family_samples import EQUAL, SAMPLES, layout_for
from safetensors.torch import load_file, save_file
from tiny_models import edit_weights

from grouper import Checkpoint, GrouperError, export, inspect
from grouper.model.loadable import check_loadable, check_model, loading_of
from search import SearchOptions, search

UP = "model.layers.1.mlp.up_proj.weight"
FAST = SearchOptions(generations=2, population=8, fitness="weight")


@pytest.mark.parametrize("name", SAMPLES)
def test_every_familys_sample_is_whole(samples, name):
    assert check_loadable(Checkpoint.open(samples(name))) == []


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoders_sample_is_whole(encoders, name):
    assert check_loadable(Checkpoint.open(encoders(name))) == []


def judged(folder) -> str:
    with pytest.raises(GrouperError) as refusal:
        check_loadable(Checkpoint.open(folder))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_missing_tensors_are_named_and_counted(samples, tmp_path):
    one = edit_weights(samples("llama"), tmp_path / "one", lambda t: t.pop(UP))
    assert f"has no tensor {UP}, which its class needs: download" in judged(one)
    two = edit_weights(one, tmp_path / "two", lambda t: t.pop("model.norm.weight"))
    assert f"has no tensor {UP}, which its class needs (and 1 other is missing)" in judged(two)


def test_a_head_that_is_not_tied_has_to_be_there(samples, tmp_path):
    folder = edit_weights(samples("llama"), tmp_path / "in", lambda t: t.pop("lm_head.weight"))
    assert "has no tensor lm_head.weight" in judged(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert check_loadable(Checkpoint.open(folder)) == []


def test_a_vocabulary_that_does_not_fit_is_said(samples, tmp_path):
    shutil.copytree(samples("llama"), tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    said = judged(tmp_path / "in")
    assert "has shape [199, 64], where config.json implies [200, 64] (and 1 other is misshapen)" in said


@pytest.mark.parametrize("prefix, wrapper", [("_orig_mod.", "torch.compile"), ("module.", "DataParallel")])
def test_names_behind_a_wrapper_are_recognised(samples, tmp_path, prefix, wrapper):
    def rename(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    assert f"as {wrapper} leaves them" in judged(edit_weights(samples("llama"), tmp_path / "in", rename))


def biased(parts: str):
    def add(tensors):
        for layer in range(2):
            for part in parts:
                rows = tensors[f"model.layers.{layer}.self_attn.{part}_proj.weight"].shape[0]
                tensors[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = torch.ones(rows) / 2

    return add


def test_biases_that_the_configuration_does_not_announce_are_refused_with_the_cure(samples, tmp_path):
    """A Qwen saved as a Llama: its biases would be merged, and then lost."""
    qkvo = edit_weights(samples("llama"), tmp_path / "qkvo", biased("qkvo"))
    said = judged(qkvo)
    assert "self_attn.k_proj.bias and 7 others" in said and said.endswith("set attention_bias: true in config.json")
    qkv = edit_weights(samples("llama"), tmp_path / "qkv", biased("qkv"))
    zeros = "and save zeros as model.layers.0.self_attn.o_proj.bias and 1 other, which that asks for, too"
    assert judged(qkv).endswith(f"set attention_bias: true in config.json, {zeros}")


@pytest.mark.parametrize("folder_of", ["llama", "old names"])
def test_the_cure_that_is_named_cures(samples, tmp_path, folder_of):
    def change(tensors):
        biased("qkvo")(tensors)
        if folder_of == "old names":
            for name in list(tensors):
                tensors[name.removeprefix("model.")] = tensors.pop(name)

    folder = edit_weights(samples("llama"), tmp_path / "in", change)
    assert "attention_bias" in judged(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    assert check_loadable(Checkpoint.open(folder)) == []


def test_other_tensors_are_one_note(samples, tmp_path, caplog):
    more = {"model.layers.0.extra.weight": torch.ones(2), "value_head.weight": torch.ones(2)}
    folder = edit_weights(samples("llama"), tmp_path / "in", lambda t: t.update(more))
    checkpoint = Checkpoint.open(folder)
    with caplog.at_level(logging.WARNING, "grouper"):
        check_model(checkpoint)
        check_model(checkpoint)
    said = [r.getMessage() for r in caplog.records]
    assert said == [f"{folder}: transformers does not use model.layers.0.extra.weight and 1 other; nor does Grouper"]
    assert export(folder, layout_for(folder, EQUAL), tmp_path / "out").self_test.passed  # they stay where they were


def test_a_stale_index_beside_a_single_file_is_not_read(samples, tmp_path, caplog):
    """transformers takes the single file, and so do we."""
    folder = tmp_path / "in"
    shutil.copytree(samples("llama"), folder)
    good = load_file(folder / "model.safetensors")
    save_file({n: torch.zeros_like(t) for n, t in good.items()}, folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(good, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = Checkpoint.open(folder)
    assert torch.equal(checkpoint.tensor(UP), good[UP])
    with caplog.at_level(logging.WARNING, "grouper"):
        assert export(folder, layout_for(folder, EQUAL), tmp_path / "out").self_test.passed
        inspect(checkpoint)
    assert caplog.text.count("the first is read, as transformers does") == 2, "by the export and by inspect"
    assert torch.equal(Checkpoint.open(tmp_path / "out").tensor(UP), good[UP])


def test_a_single_file_of_another_name_is_refused_as_transformers_does(samples, tmp_path):
    shutil.copytree(samples("llama"), tmp_path / "in")
    (tmp_path / "in" / "model.safetensors").rename(tmp_path / "in" / "weights.safetensors")
    with pytest.raises(GrouperError, match=r"rename it to model\.safetensors"):
        search(tmp_path / "in", tmp_path / "run", FAST)


def test_search_refuses_before_anything_is_written(samples, tmp_path):
    folder = edit_weights(samples("llama"), tmp_path / "in", lambda t: t.pop(UP))
    with pytest.raises(GrouperError, match="has no tensor"):
        search(folder, tmp_path / "run", FAST)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"])
def test_what_is_copied_has_to_be_finite(samples, tmp_path, broken, dtype, name):
    def change(tensors):
        for n in tensors:
            tensors[n] = tensors[n].to(dtype)
        tensors[name].view(-1)[-1] = broken

    folder = edit_weights(samples("llama"), tmp_path / "in", change)
    with pytest.raises(GrouperError, match=f"{name} .*holds NaN or infinity: the weights are damaged"):
        export(folder, layout_for(folder, EQUAL), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_nothing_is_loaded_for_the_judgement(samples, monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "tensor", refuse)
    assert loading_of(Checkpoint.open(samples("qwen3_moe"))).missing == ()


@pytest.mark.parametrize(
    "file, said",
    [
        ("adapter_config.json", "it is a LoRA adapter; load it on its base with peft, call merge_and_unload()"),
        ("model.Q4_K_M.gguf", "GGUF files are not read; give the Hugging Face original"),
        ("notes.txt", "expected the folder or Hub id of a Hugging Face model"),
    ],
)
def test_a_folder_that_is_no_model_is_told_apart(tmp_path, file, said):
    (tmp_path / file).write_text("{}")
    with pytest.raises(GrouperError) as refusal:
        Checkpoint.open(tmp_path)
    assert "has no config.json: " in str(refusal.value) and said in str(refusal.value)
