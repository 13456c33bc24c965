"""GPT-NeoX, GPT-J and Falcon as Phi, with configurations that leave no default as it is."""

import json

import pytest
from family_samples import GPT, MHA, check_identity, logits, make

from grouper import Checkpoint, export
from grouper.export.hf.as_phi import phi_config
from grouper.families.architecture import Architecture

LINEAR = {"rope_type": "linear", "factor": 4.0}
OTHER = {  # what each class calls it
    "gpt_neox": {
        **MHA, "layer_norm_eps": 0.125, "hidden_act": "relu", "intermediate_size": 80, "attention_bias": False,
        "rope_parameters": {**LINEAR, "rope_theta": 50.0, "partial_rotary_factor": 0.5},
    },
    "gptj": {
        **GPT, "rotary_dim": 4, "layer_norm_epsilon": 0.125, "activation_function": "relu", "n_inner": 80,
        "n_positions": 96,
    },
    "falcon": {
        **MHA, "multi_query": False, "bias": True, "layer_norm_epsilon": 0.125, "activation": "relu",
        "ffn_hidden_size": 80, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def original_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", OTHER)
def test_epsilons_activations_sizes_and_rope_are_the_originals(prompt, tmp_path, name):
    folder = make(tmp_path / "in", name, OTHER[name])
    check_identity(folder, tmp_path, prompt, "mean")
    written = original_of(tmp_path / "out")
    wanted = {
        "model_type": "phi", "layer_norm_eps": 0.125, "hidden_act": "relu", "intermediate_size": 80, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 2, "vocab_size": 199, "num_attention_heads": 8, "num_key_value_heads": 8,
        "max_position_embeddings": 96 if name == "gptj" else {"gpt_neox": 128, "falcon": 128}[name],
        "tie_word_embeddings": False, "head_dim": 8, "num_hidden_layers": 2, "hidden_size": 64,
        "partial_rotary_factor": 1.0 if name == "falcon" else 0.5, "qk_layernorm": False,
    }  # fmt: skip
    assert {key: written[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("gpt_neox", {"rotary_emb_base": 50.0, "rope_scaling": {"type": "linear", "factor": 4.0}, "rotary_pct": 0.5}),
        ("falcon", {"rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    ],
)
def test_what_older_configurations_call_rope(prompt, tmp_path, name, old):
    folder = make(tmp_path / "in", name, OTHER[name])
    plain = logits(folder, prompt)
    config = {k: v for k, v in original_of(folder).items() if k not in ("rope_parameters", "rope_theta", "rotary_pct")}
    (folder / "config.json").write_text(json.dumps({**config, **old}))
    assert name == "gpt_neox" or (logits(folder, prompt) - plain).abs().max() > 1e-3, "transformers reads them"
    check_identity(folder, tmp_path, prompt, "mean")
    written = original_of(tmp_path / "out")["rope_parameters"]
    assert (written["rope_type"], written["factor"], written["rope_theta"]) == ("linear", 4.0, 50.0)


def test_heads_that_are_tied_stay_tied(prompt, tmp_path):
    folder = make(tmp_path / "in", "falcon", {**OTHER["falcon"], "tie_word_embeddings": True})
    check_identity(folder, tmp_path, prompt, "mean")
    assert original_of(tmp_path / "out")["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("name", "activation", "inner"), [("gpt_neox", "gelu", 24576), ("gptj", "gelu_new", 256), ("falcon", "gelu", 256)]
)
def test_what_is_left_out_is_the_classes_default(name, activation, inner):
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2, "multi_query": False}
    sizes |= {"n_embd": 64, "n_head": 8, "n_layer": 2, "vocab_size": 9}
    config = {"model_type": name, **sizes}
    written = phi_config(config, Architecture.of(config))
    assert (written["hidden_act"], written["intermediate_size"], written["layer_norm_eps"]) == (activation, inner, 1e-5)
    assert written["rope_parameters"]["rope_theta"] == 10000.0 and written["rope_parameters"]["rope_type"] == "default"


def test_biases_that_only_phi_has_are_zeros(tmp_path, samples):
    folder = samples("falcon")
    export(folder, Architecture.of(Checkpoint.open(folder).config).ungrouped, tmp_path / "out")
    written = Checkpoint.open(tmp_path / "out")
    for name in ("lm_head.bias", "model.layers.1.self_attn.dense.bias", "model.layers.0.mlp.fc2.bias"):
        assert (written.tensor(name) == 0).all(), name
