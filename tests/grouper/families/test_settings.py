"""What configurations come to, value by value."""

import json

import pytest
import torch

from grouper import Architecture, GrouperError
from grouper.families.configuration import check_complete, rotary_dim, sliding_windows, unrotated_layers
from grouper.families.decoders import FAMILIES
from grouper.families.family import Family
from grouper.families.inspection import savings
from grouper.families.storage import Fused, Separate
from grouper.layout import LayerLayout
from grouper.model.one_layer import of_layer

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 4}


def test_smollm3_leaves_rope_out_of_every_fourth_layer_or_where_it_says():
    smollm = {"model_type": "smollm3"}
    assert unrotated_layers(smollm, 9) == {3, 7}
    assert unrotated_layers({**smollm, "no_rope_layer_interval": 2}, 5) == {1, 3}
    assert unrotated_layers({**smollm, "no_rope_layers": [0, 1, 1, 0]}, 4) == {0, 3}
    assert unrotated_layers({**LLAMA, "no_rope_layers": [0, 1, 1, 0]}, 4) == frozenset()


@pytest.mark.parametrize(
    ("config", "wanted"),
    [({"model_type": "mistral", "sliding_window": 32}, [32] * 4), ({"model_type": "mistral"}, [4096] * 4),
     ({"model_type": "mistral", "sliding_window": None}, [None] * 4), ({**LLAMA, "sliding_window": 32}, [None] * 4),
     ({"model_type": "qwen2", "sliding_window": 32}, [None] * 4),
     ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 3,
       "num_hidden_layers": 4}, [None, None, None, 32]),
     ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False,
       "layer_types": ["sliding_attention"] * 4}, [None] * 4),
     ({"model_type": "gemma2", "sliding_window": 32, "num_hidden_layers": 4}, [32, None] * 2),
     ({"model_type": "gemma3_text", "sliding_window": 32, "num_hidden_layers": 4,
       "layer_types": ["full_attention", "sliding_attention"] * 2}, [None, 32] * 2)],
    ids=lambda value: json.dumps(value)[:60],
)  # fmt: skip
def test_windows_of_layers(config, wanted):
    assert list(sliding_windows(config, 4)) == wanted


@pytest.mark.parametrize(
    ("family", "config", "rows"),
    [("llama", {}, 80), ("phi", {}, 40), ("phi", {"partial_rotary_factor": 0.4}, 32), ("stablelm", {}, 20),
     ("phi", {"rope_parameters": {"partial_rotary_factor": 0.25}}, 20), ("gpt_neox", {}, 20),
     ("gpt_neox", {"rotary_pct": 0.5}, 40), ("gptj", {"rotary_dim": 32}, 32), ("gptj", {"rotary_dim": None}, 80),
     ("phi3", {}, 80), ("phi3", {"partial_rotary_factor": 0.75}, 60), ("llama", {"partial_rotary_factor": 0.5}, 80)],
)  # fmt: skip
def test_rows_that_rope_turns(family, config, rows):
    """Of 80, where nothing is said as the class has it."""
    assert rotary_dim({"model_type": family, **config}, FAMILIES[family], 80) == rows


def test_heads_and_sizes_that_a_configuration_leaves_out():
    a = Architecture.of(LLAMA)
    assert (a.kv_heads, a.head_dim, a.queries_per_kv_head, a.multiplier, a.nested) == (8, 8, 1, 1.0, False)
    assert a.uniform_counts() == [1, 2, 3, 4, 5, 6, 7] and a.uniform_counts(2) == [2, 4, 6] and a.windows == (None,) * 4
    assert Architecture.of({**LLAMA, "residual_multiplier": 0.25}).multiplier == 0.25
    for family, d in (("gemma", 256), ("gemma2", 256), ("gemma3_text", 256), ("qwen3", 128), ("qwen3_moe", 8)):
        config = {**LLAMA, "model_type": family, "num_key_value_heads": 4}
        assert Architecture.of(config).head_dim == d, family
        assert FAMILIES[family].head_dim in (d, None)
    falcon = {"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
    assert Architecture.of(falcon).kv_heads == 1, "multi-query unless said otherwise"
    assert Architecture.of({**falcon, "multi_query": False, "num_kv_heads": 2}).kv_heads == 8
    assert Architecture.of({**falcon, "new_decoder_architecture": True, "num_kv_heads": 2}).kv_heads == 2


def test_positions_and_phi():
    neox = {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
    assert Architecture.of(neox).as_phi and not Architecture.of({**neox, "use_parallel_residual": False}).as_phi
    falcon = {**neox, "model_type": "falcon", "alibi": True}
    a = Architecture.of(falcon)
    assert (a.position, a.rotary_dim, a.as_phi) == ("alibi", 0, False)
    assert Architecture.of({**falcon, "alibi": False}).as_phi and not Architecture.of(LLAMA).as_phi
    assert not Architecture.of({**falcon, "alibi": False, "parallel_attn": False}).as_phi
    opt = {"model_type": "opt", "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
    assert Architecture.of(opt).norms == ("self_attn_layer_norm",)
    assert Architecture.of({**opt, "do_layer_norm_before": False}).norms == ()


T5 = {
    "model_type": "t5", "d_model": 64, "d_kv": 16, "num_layers": 2, "num_heads": 8, "num_decoder_layers": 3,
    "n_positions": 512,
}  # fmt: skip


def test_an_encoders_attentions_come_first_then_two_of_each_layer_of_the_decoder():
    a = Architecture.of(T5)
    assert (a.layers, a.encoder_layers) == (8, 2)
    assert [site.layer for site in a.sites] == [0, 1, 0, 0, 1, 1, 2, 2]
    assert [site.stack for site in a.sites] == [0, 0, 1, 1, 1, 1, 1, 1] and [s.index for s in a.sites] == list(range(8))
    assert [[site.index for site in place] for place in a.places] == [[0], [1], [2, 3], [4, 5], [6, 7]]
    assert [site.family for site in a.sites[1:4]] == list(a.family.parts)
    assert a.caches == ("none", "none", *("token", "source") * 3)
    assert [a.name_of(i) for i in (1, 2, 3, 7)] == ["encoder 1", "decoder 0", "decoder 0 across", "decoder 2 across"]
    assert Architecture.of({**T5, "num_decoder_layers": None}).layers == 6
    assert Architecture.of(LLAMA).name_of(3) == "layer 3" and Architecture.of(LLAMA).caches == ()


def test_encoders_keep_no_cache_and_windows_hold_no_more_than_their_tokens():
    """Bytes by hand: K and V heads times tokens times head_dim times bytes of a number."""
    a = Architecture.of(T5)
    assert a.kv_bytes([16] * 8, 2, 100) == 6 * 16 * 100 * 16 * 2
    assert a.kv_bytes([16, 16, 4, 16, 4, 16, 4, 2], 2, 100) == (3 * 4 + 2 * 16 + 2) * 100 * 16 * 2
    bert = Architecture.of({**LLAMA, "model_type": "bert"})
    assert bert.kv_bytes([16] * 4, 2, 100) == 0
    gemma = {**LLAMA, "model_type": "gemma2", "head_dim": 8, "num_key_value_heads": 4, "sliding_window": 32}
    windowed = Architecture.of(gemma)
    assert windowed.kv_bytes([8, 2, 8, 4], 1, 100) == (8 * 32 + 2 * 100 + 8 * 32 + 4 * 100) * 8
    assert windowed.kv_bytes([8, 2, 8, 4], 1, 20) == 22 * 20 * 8


def test_savings_are_of_halves_that_come_out_whole():
    """12 heads: every count from 11 on. A card of 1,000,000 bytes, 900,000 of which count; weights of 100,000."""
    a = Architecture.of({**LLAMA, "hidden_size": 96, "num_attention_heads": 12})
    checkpoint = type("Checkpoint", (), {"nbytes": 100_000})()
    every = savings(checkpoint, a, 2, 10, 3, 1_000_000, ["stock", "ragged"])
    assert [s.kv_heads for s in every] == list(range(12, 0, -1))
    found = [s for s in every if s.kv_heads in (12, 6, 3)]
    assert [s.kv_ratio for s in found] == [1.0, 0.5, 0.25]
    one = 4 * 24 * 10 * 8 * 2
    assert [s.kv_bytes for s in found] == [3 * one, 3 * one // 2, 3 * one // 4]
    assert [s.largest_batch for s in found] == [800_000 * 2**i // one for i in range(3)]
    assert savings(checkpoint, a, 2, 10, 3, None, ["stock"])[0].largest_batch is None


def test_llama_carries_no_padded_export_of_a_model_with_windows():
    qwen, mistral, gpt2 = (FAMILIES[name] for name in ("qwen2", "mistral", "gpt2"))
    assert qwen.export_classes(False) == ["stock", "padded", "ragged"]
    assert qwen.export_classes(False, windowed=True) == ["stock", "ragged"]
    assert mistral.export_classes(False, windowed=True) == ["stock", "padded", "ragged"]
    assert qwen.export_classes(False, nested=True) == ["stock"] and gpt2.export_classes(False) == ["ragged"]
    assert FAMILIES["gptj"].export_classes(True) == ["stock", "ragged"]


def test_names_within_a_family():
    family = Family("x", "", "X", renamed=(("a.b.", "c."), ("a.", "d.")))
    assert [family.class_name(n) for n in ("a.b.q", "a.q", "b.q")] == ["c.q", "d.q", "b.q"]
    assert FAMILIES["gpt_neox"].attention == "attention" and FAMILIES["llama"].attention == "self_attn"
    assert FAMILIES["bert"].attention == "attention" and FAMILIES["bert"].encodes and FAMILIES["t5"].encodes
    assert not FAMILIES["llama"].encodes and FAMILIES["gpt2"].causal_lm == "GPT2LMHeadModel"


@pytest.mark.parametrize("layer", range(4))
def test_the_configuration_of_one_layer_keeps_what_that_layer_is(layer):
    lists = {"layer_types": list("abcd"), "no_rope_layers": [1, 0, 1, 1], "kv_groups": [[0], [1], [2], [3]]}
    own = {"per_layer_config": {"1": {"x": 1}, "3": {"x": 3}}}
    found = of_layer({**LLAMA, **lists, **own}, layer)
    assert found["num_hidden_layers"] == 1 and found["hidden_size"] == 64
    assert [found[key] for key in lists] == [[values[layer]] for values in lists.values()]
    assert found["per_layer_config"] == ({"0": {"x": layer}} if layer % 2 else {})
    gpt = of_layer({"model_type": "gpt2", "n_layer": 12}, layer)
    assert gpt == {"model_type": "gpt2", "n_layer": 1}, "under its own name"


@pytest.mark.parametrize(
    ("config", "sparse"),
    [({"decoder_sparse_step": 1}, [0, 1, 2, 3]), ({"decoder_sparse_step": 2}, [1, 3]),
     ({"decoder_sparse_step": 3}, [2]), ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]}, [1, 3]),
     ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [1])],
)  # fmt: skip
def test_which_layers_have_experts_is_what_transformers_builds(config, sparse):
    """Qwen2-MoE's layers, of the whole configuration and of one layer's."""
    from transformers import Qwen2MoeConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeDecoderLayer

    small = {
        "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 2,
        "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_hidden_layers": 4, **config,
    }  # fmt: skip
    for layer in range(4):
        whole, one = Qwen2MoeConfig(**small), Qwen2MoeConfig(**of_layer(small, layer))
        with torch.device("meta"):
            kinds = [type(Qwen2MoeDecoderLayer(c, i).mlp).__name__ for c, i in ((whole, layer), (one, 0))]
        assert kinds[0] == kinds[1] and ("Sparse" in kinds[0]) == (layer in sparse)


@pytest.mark.parametrize("fused", [None, "stacked", "per-group"])
def test_keys_of_each_window_and_token_by_head(fused):
    """[windows, G, d, tokens], from what the module gives [windows, tokens, rows]; all sizes differ."""
    family = Family("x", "", "X", storage=Fused("a.q", "a.o", fused == "per-group") if fused else Separate())
    windows, tokens, heads, kv, d = 2, 5, 6, 3, 4
    a = Architecture(family, 1, heads, kv, d, 8, d, 0)
    keys = torch.randn(windows, kv, d, tokens)
    rows = keys.permute(0, 3, 1, 2)  # [windows, tokens, G, d]
    if fused == "stacked":
        q, v = torch.zeros(windows, tokens, heads, d), torch.ones(windows, tokens, kv, d)
        rows = torch.cat([q, rows, v], 2)
    elif fused == "per-group":
        q, v = torch.zeros(windows, tokens, kv, heads // kv, d), torch.ones(windows, tokens, kv, 1, d)
        rows = torch.cat([q, rows[:, :, :, None], v], 3).flatten(2, 3)
    assert torch.equal(a.key_outputs(rows.flatten(2)), keys)


def test_a_layer_as_it_came_and_layouts_of_a_model():
    a = Architecture.of({**LLAMA, "num_key_value_heads": 2})
    assert a.whole_layer == LayerLayout.from_labels([0, 1], 4) and a.ungrouped.kv_ratio == 1
    assert a.layout([a.whole_layer] * 4) == a.ungrouped and Architecture.of(T5).ungrouped.caches[0] == "none"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "t5"}, "no decoder_start_token_id"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"], "sliding_window": None}, "no sliding_window"),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"], "sliding_window": 4,
             "use_sliding_window": False},
            "no sliding_window",
        ),
        ({"model_type": "llama", "layer_types": ["sliding_attention"]}, "no sliding_window"),
        ({"model_type": "llama", "layer_types": ["chunked_attention"]}, "'chunked_attention': expected full or"),
    ],
)  # fmt: skip
def test_a_configuration_lacks_what_its_class_needs_to_run(config, said):
    with pytest.raises(GrouperError, match=said):
        check_complete(config)


def test_a_complete_configuration():
    check_complete({"model_type": "t5", "decoder_start_token_id": 0})
    check_complete({"model_type": "qwen2", "layer_types": ["full_attention"], "sliding_window": None})
    check_complete({"model_type": "gpt_oss", "layer_types": ["sliding_attention", "full_attention"]})
    check_complete({"model_type": "mistral", "layer_types": ["sliding_attention"]})
