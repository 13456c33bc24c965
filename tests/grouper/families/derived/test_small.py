"""Small configurations keep quirks and lose sizes."""

import pytest

from grouper import GrouperError
from grouper.families.derived.small import FREE, MULTI_HEAD, full_settings, kept_layers, small_config


def small(model_type: str, **settings) -> dict:
    return small_config(*full_settings(model_type, settings), FREE)


def test_sizes_shrink_and_differ_from_one_another():
    found = small("llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32)
    assert (found["num_attention_heads"], found["num_key_value_heads"], found["head_dim"], found["hidden_size"]) == (
        8, 4, 16, 96
    )  # fmt: skip
    assert found["num_hidden_layers"] == 2 and found["vocab_size"] == 199 and found["intermediate_size"] == 48
    assert FREE.query_heads * FREE.d != FREE.hidden_size and "head_dim" not in MULTI_HEAD.settings()
    assert small_config(*full_settings("llama", {}), MULTI_HEAD)["num_key_value_heads"] == 8


def test_quirks_stay():
    found = small("llama", attention_bias=True, rms_norm_eps=0.03, tie_word_embeddings=True)
    assert found["attention_bias"] and found["rms_norm_eps"] == 0.03 and found["tie_word_embeddings"]
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    assert small("llama", rope_parameters=scaled)["rope_parameters"] == {**scaled, "rope_theta": 10_000.0}
    assert small("gpt_oss", sliding_window=4096)["sliding_window"] == 8


def test_models_that_differ_in_sizes_alone_have_one_small_configuration():
    sizes = {"num_hidden_layers": 24, "hidden_size": 2048, "vocab_size": 32000, "bos_token_id": 7}
    names = {"auto_map": {"AutoModelForCausalLM": "code.Model"}, "architectures": ["X"], "id2label": {"0": "a"}}
    assert small("llama") == small("llama", **sizes) == small("llama", **names) and small("llama") != small(
        "llama", mlp_bias=True
    )


@pytest.mark.parametrize(
    ("full", "kept"),
    [
        ({}, [0, 1]),
        ({"layer_types": ["a"] * 9}, [0, 1]),
        ({"layer_types": ["a", "a", "b", "a", "a", "b", "c", "a", "a"]}, [0, 2, 6]),
        ({"layer_types": ["a", "b"] * 4 + ["a"], "dense": [1] + [0] * 8}, [0, 1, 2]),
        ({"moe_layer_interval": 3}, [0, 1, 2]),
        ({"first_k_dense_replace": 3}, [0, 1, 2]),
        ({"decoder_sparse_step": 1}, [0, 1]),
    ],
)
def test_layers_of_every_kind_are_kept(full, kept):
    assert kept_layers(full, 9) == kept


def test_layers_of_too_many_kinds():
    assert kept_layers({"layer_types": list("abcdefghijkl") + ["a"] * 8}, 20) == list(range(12))
    with pytest.raises(GrouperError, match="its layers are of 13 kinds"):
        kept_layers({"layer_types": list("abcdefghijklm")}, 13)


def test_rope_turns_fast_enough_to_be_seen():
    full = {
        "model_type": "x",
        "rope_theta": 5_000_000,
        "num_hidden_layers": 2,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "long_factor": list(range(64)), "partial_rotary_factor": 0.5}
        },
    }
    found = small_config(full, {}, FREE)
    assert found["rope_theta"] == 10_000.0
    inner = found["rope_parameters"]["full_attention"]
    assert inner["rope_theta"] == 10_000.0 and inner["long_factor"] == [0, 1, 2, 3]


def test_a_type_that_transformers_does_not_have():
    with pytest.raises(GrouperError, match="has no models of this type"):
        full_settings("no_such_type", {})
