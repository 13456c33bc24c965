"""What is let in: nothing here may reach a library."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from grouper import Architecture, Checkpoint, GrouperError
from grouper.calibration.source import TextSource
from grouper.calibration.text import text_of
from grouper.checkpoint.header_check import check_tensors
from grouper.checkpoint.validation import check_configuration
from grouper.running.in_memory import InMemoryModel

GOOD = {
    "model_type": "llama", "num_attention_heads": 8, "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 4096,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "layer_types": ["full_attention"] * 3,
}  # fmt: skip


def test_a_right_configuration_passes():
    check_configuration(GOOD, "it")
    check_configuration({**GOOD, "grouper": {"crc32": {"layers.0.k_proj.bias": 7}, "dtype": 3}}, "it")
    check_configuration({**GOOD, "id2label": {"0": "no", "1": "yes"}, "residual_multiplier": 0.22}, "it")
    check_configuration({**GOOD, "vision_config": {"patch_size": [14, 14], "hidden_size": "any"}}, "it")
    check_configuration(
        {**GOOD, "quantization_config": None, "sliding_window": None, "rope_scaling": None, "rms_norm_eps": 1e-6}, "it"
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"num_attention_heads": 10**9}, "num_attention_heads 1000000000: expected a whole number from 1 to 4,096"),
        ({"num_labels": 10**9}, "num_labels 1000000000: expected a whole number from 0 to 1,000,000"),
        ({"vision_config": {"num_labels": 10**9}}, "vision_config.num_labels 1000000000: expected a whole number"),
        ({"n_head": True}, "n_head True: expected a whole number"),  # GPT-2's word for it
        ({"hidden_size": "64"}, "hidden_size '64': expected a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"num_hidden_layers": {"a": 1}}, "num_hidden_layers {'a': 1}"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_parameters.rope_theta -1.0: expected a number from 1e-06"),
        ({"rope_parameters": [1]}, "rope_parameters [1]: expected an object"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan: expected a finite number"),
        ({"anything": {"at": {"all": float("inf")}}}, "anything.at.all inf: expected a finite number"),
        ({"anything": 2**70}, "expected an integer below 2**62"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings 1: expected true or false"),
        ({"hidden_act": ["silu"]}, "expected a name"),
        ({"model_type": {"a": {}}}, "expected a name"),
        ({"dtype": "int8"}, "expected one of float64, float32"),
        ({"layer_types": ["full_attention"]}, "3 entries, one for each layer; it has 1"),
        ({"layer_types": "full"}, "a list of names, one for each layer"),
        ({"text_config": [1]}, "text_config [1]: expected an object"),
        ({"text_config": {"hidden_size": -1}}, "text_config.hidden_size -1"),
        ({"anything": [1, [10**30]]}, "anything[1][0] 1000000000000000000000000000000: expected an integer below"),
        ({"anything": [{"at": [float("inf")]}]}, "anything[0].at[0] inf: expected a finite number"),
        ({"residual_multiplier": "x"}, "residual_multiplier 'x': expected a number"),
        ({"logits_scaling": 0}, "logits_scaling 0: expected a number from 1e-06"),
        ({"chunk_size_feed_forward": 7}, "chunk_size_feed_forward 7: expected a whole number from 0 to 1"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id -1: expected a whole number"),
        ({"return_dict": False}, "return_dict False: expected true, or no such field"),
        ({"id2label": 1.5}, "id2label 1.5: expected an object with a name for each number"),
        ({"id2label": [1]}, "id2label [1]: expected an object"),
        ({"id2label": {"a": "b"}}, "id2label {'a': 'b'}: expected an object"),
        ({"id2label": {"0": {"b": 1}}}, "id2label {'0': {'b': 1}}: expected an object"),
        ({"id2label": {"9" * 30: "a"}}, "expected an object"),
    ],
)
def test_wrong_fields_are_named_with_what_was_expected(change, said):
    with pytest.raises(GrouperError) as refusal:
        check_configuration({**GOOD, **change}, "it")
    assert said in str(refusal.value) and str(refusal.value).startswith("config.json of it has ")


def test_deep_json_is_refused_in_one_line(reader, tmp_path):
    deep = GOOD
    for _ in range(30):
        deep = {"inner": deep}
    with pytest.raises(GrouperError, match="more than 20 deep"):
        check_configuration(deep, "it")
    shutil.copytree(reader, tmp_path / "in")
    (tmp_path / "in" / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(GrouperError, match="is not JSON"):
        Checkpoint.open(tmp_path / "in")


def changed(source, target, change):
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint.open(target)


K = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda t: t.update({K: t[K][:-1].contiguous()}),
            r"k_proj.weight of .* has shape \[127, \d+\], where .* \[128",
        ),
        (lambda t: t.update({K: t[K].T.contiguous()}), "has shape"),
        (lambda t: t.update({K: t[K].to(torch.int8)}), "of type I8: expected weights as one of F64"),
        (lambda t: t.pop(K), "has no tensor model.layers.1.self_attn.k_proj.weight"),
    ],
)
def test_tensors_are_what_the_configuration_implies(reader, tmp_path, change, said):
    checkpoint = changed(reader, tmp_path / "in", change)
    with pytest.raises(GrouperError, match=said):
        check_tensors(checkpoint, Architecture.of(checkpoint.config))


def test_huge_weights_and_missing_ones_are_refused(reader, tmp_path):
    huge = changed(reader, tmp_path / "huge", lambda t: t[K].view(-1)[:1].fill_(1e38))
    with pytest.raises(GrouperError, match=r"k_proj.weight of .* has values of 1e\+38: the weights are damaged"):
        Architecture.of(huge.config).read(huge, 1)
    up = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(GrouperError, match=f"1 missing keys, among them {up}"):  # transformers would make some up
        InMemoryModel(changed(reader, tmp_path / "less", lambda t: t.pop(up)))
    with pytest.raises(GrouperError, match="transformers cannot load"):
        InMemoryModel(changed(reader, tmp_path / "other", lambda t: t.update({up: t[up].T.contiguous()})))


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "model.safetensors"])
def test_links_out_devices_and_pipes_are_not_followed(reader, tmp_path, name):
    shutil.copytree(reader, tmp_path / "in")
    (tmp_path / "in" / name).unlink(missing_ok=True)
    (tmp_path / "in" / name).symlink_to(reader / name if name.startswith("model") else "/dev/zero")
    with pytest.raises(GrouperError, match=f"{name} is a link out of the model's folder"):
        Checkpoint.open(tmp_path / "in")
    (tmp_path / "in" / name).unlink()
    os.mkfifo(tmp_path / "in" / name)
    with pytest.raises(GrouperError, match="or no file"):
        Checkpoint.open(tmp_path / "in")


def test_the_hubs_cache_is_a_folder_of_links(reader, tmp_path):
    snapshot, blobs = tmp_path / "models--me--it" / "snapshots" / "abc", tmp_path / "models--me--it" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for file in reader.iterdir():
        shutil.copyfile(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    assert Checkpoint.open(snapshot).parameters == Checkpoint.open(reader).parameters


def test_tokens_that_the_model_does_not_know_are_refused(reader, tmp_path):
    shutil.copytree(reader, tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(GrouperError, match=r"gives token \d+, and the model knows 100"):
        text_of(Checkpoint.open(tmp_path / "in"), TextSource("demo"), 64, 4)
