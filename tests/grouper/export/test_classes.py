"""Configurations of exported classes, what they refuse, and which engines run them."""

import json
from dataclasses import replace

import pytest
import torch
from encoder_samples import architecture_of
from family_samples import EQUAL as EVEN
from family_samples import RAGGED, gathered, layout_for
from family_samples import UNEQUAL as PADDED
from tiny_models import SIZES, add_tokenizer, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grouper import Architecture, Checkpoint, ExportOptions, GrouperError, Grouping, HeadLayout, LayerLayout, export
from grouper.attention import MergedLayer
from grouper.compress import Regrouper
from grouper.export.classes import CLASSES, class_for
from grouper.export.format import check_same_model
from grouper.export.hf.engines import engines_for
from grouper.export.hf.padded import overhead
from grouper.export.hf.ragged import query_of_head
from grouper.export.hf.ragged_encoder import encoder_config
from grouper.export.hf.readers import readable_by_all
from grouper.export.hf.slots import slots_for
from grouper.export.hf.tokenizer import name_tokenizer_class
from grouper.merging import MERGES

ROWS = [[0, 1, 1, 1], [0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0]]  # 2, 4, 2 and 1 KV heads, the most not in the first
SIZE = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64, "num_hidden_layers": 4, "head_dim": 16}


def architecture(model_type: str, **more) -> Architecture:
    return Architecture.of({"model_type": model_type, **SIZE, **more})


def config_of(kind: str, model_type: str, layout: HeadLayout, names=frozenset(), **more) -> dict:
    config = {"model_type": model_type, **SIZE, **more}
    return CLASSES[kind].config(config, Architecture.of(config), layout, set(names))


# ragged


def test_a_ragged_configuration_has_counts_for_the_whole_and_each_layer():
    """Engines size a layer's cache by per_layer_config, of slots where groups are unequal, and all else by the largest
    count."""
    layout = HeadLayout.from_labels(ROWS, 8, 16)
    config = config_of("ragged", "llama", layout, auto_map={"AutoModel": "evil.Evil"}, rope_theta=7.0)
    assert config["num_key_value_heads"] == 4 and config["num_attention_heads"] == 8 and config["head_dim"] == 16
    assert config["kv_groups"] == [[2, 6], [2, 2, 2, 2], [4, 4], [8]] and config["rope_theta"] == 7.0
    assert config["per_layer_config"] == {
        "0": {"num_attention_heads": 12, "num_key_value_heads": 2},
        "2": {"num_attention_heads": 8, "num_key_value_heads": 2},
        "3": {"num_attention_heads": 8, "num_key_value_heads": 1},
    }
    assert config["auto_map"] == {
        "AutoConfig": "modeling_ragged.RaggedConfig", "AutoModel": "modeling_ragged.RaggedModel",
        "AutoModelForCausalLM": "modeling_ragged.RaggedForCausalLM",
    }  # fmt: skip
    assert config["model_type"] == "grouper_ragged_llama" and "query_of_head" not in config


def test_shared_queries_are_named_in_the_order_of_kv_groups():
    """KV head 0 is read by outputs 0, 1, 4 and 5, which project as pairs do."""
    kv, queries = Grouping.from_labels([0, 1, 0, 1], 2), Grouping.from_labels([0, 0, 1, 1, 2, 2, 3, 3])
    shares, plain = LayerLayout(kv, kv, queries), LayerLayout.shared(kv)
    assert query_of_head(shares) == [0, 0, 2, 2, 1, 1, 3, 3] and query_of_head(plain) == list(range(8))
    layout = HeadLayout((shares, plain, plain, plain), 8, 4, 16)
    assert config_of("ragged", "llama", layout)["query_of_head"] == [query_of_head(one) for one in layout.layers]
    t5 = {"model_type": "t5", "num_heads": 8, "num_layers": 1, "d_model": 64, "d_kv": 16}
    whole = Grouping.from_labels([0, 0, 1, 1, 0, 0, 1, 1])
    one = LayerLayout(whole, whole, queries)
    config = encoder_config(t5, Architecture.of(t5), HeadLayout((one, LayerLayout.shared(whole), one), 8, 8, 16))
    places = ["encoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.0.SelfAttention",
              "decoder.block.0.layer.1.EncDecAttention"]  # fmt: skip
    assert config["kv_readers"] == dict.fromkeys(places, ((0, 1, 4, 5), (2, 3, 6, 7)))
    assert config["query_of_head"] == {places[i]: [0, 0, 2, 2, 1, 1, 3, 3] for i in (0, 2)}


def test_attention_of_ones_own_says_which_projections_have_biases_and_whose_head_is_whose():
    layout = HeadLayout.from_labels([[0, 0, 1, 0, 2, 1, 0, 2]], 8, 8)
    names = {"q": "transformer.h.0.attn.q_proj.bias", "o": "transformer.h.0.attn.o_proj.bias"}
    for which, biases in (("", (False, False)), ("q", (True, False)), ("o", (False, True)), ("qo", (True, True))):
        config = {"model_type": "gpt2", "n_head": 8, "n_embd": 64, "n_layer": 1}
        made = CLASSES["ragged"].config(config, Architecture.of(config), layout, {names[n] for n in which})
        assert (made["qkv_bias"], made["o_bias"]) == biases
    assert made["head_order"] == [[0, 1, 3, 6, 2, 5, 4, 7]] and made["kv_groups"] == [[4, 2, 2]]


@pytest.mark.parametrize(
    ("name", "auto", "saved"),
    [("bert", "AutoModelForMaskedLM", "BertForMaskedLM"), ("bert-bare", "AutoModel", "BertModel"),
     ("bert-classifier", "AutoModelForSequenceClassification", "BertForSequenceClassification"),
     ("t5", "AutoModelForSeq2SeqLM", "T5ForConditionalGeneration")],
)  # fmt: skip
def test_an_encoders_auto_classes(encoders, name, auto, saved):
    config = json.loads((encoders(name) / "config.json").read_text())
    a = architecture_of(encoders(name))
    made = encoder_config(config, a, a.ungrouped)
    assert made["architectures"] == [f"Ragged{saved}"] and made["auto_map"][auto] == f"modeling_ragged.Ragged{saved}"
    assert made["auto_map"]["AutoConfig"] == "modeling_ragged.RaggedConfig" and "query_of_head" not in made


def test_of_two_classes_with_one_auto_class_the_one_that_was_saved_is_loaded(encoders):
    a, saved = architecture_of(encoders("deit")), "DeiTForImageClassificationWithTeacher"
    config = json.loads((encoders("deit") / "config.json").read_text())
    made = encoder_config({**config, "architectures": [saved]}, a, a.ungrouped)
    assert made["architectures"] == [f"Ragged{saved}"]
    assert made["auto_map"]["AutoModelForImageClassification"] == f"modeling_ragged.Ragged{saved}"
    unknown = encoder_config({**config, "architectures": ["SomethingElse"]}, a, a.ungrouped)
    assert unknown["architectures"] == ["RaggedDeiTModel"]


def test_of_two_attentions_in_a_layer_the_last_ones_others_are_written(encoders, tmp_path):
    """Refinement of the one across goes on from what that of the decoder's own left."""
    checkpoint = Checkpoint.open(encoders("t5"))
    whole = architecture_of(encoders("t5")).ungrouped
    start, name = Regrouper(checkpoint).merged(whole, MERGES["mean"]), "layer.2.DenseReluDense.wi.weight"
    full = f"decoder.block.0.{name}"

    def merged(layer: int) -> MergedLayer:
        if layer not in (2, 3):
            return start(layer)
        return replace(start(layer), others={name: checkpoint.tensor(full) + layer})

    export(encoders("t5"), whole, tmp_path / "out", merged=merged)
    assert torch.equal(Checkpoint.open(tmp_path / "out").tensor(full), checkpoint.tensor(full) + 3)


def test_too_old_a_transformers_is_named_by_the_file_itself(encoders, tmp_path):
    for name, version in (("bert", "5.0"), ("t5", "5.15"), ("vit", "5.12")):
        a = architecture_of(encoders(name))
        export(encoders(name), a.ungrouped, tmp_path / name)
        source = (tmp_path / name / "modeling_ragged.py").read_text()
        assert f"this model needs transformers {version} or later" in source


# padded


def test_what_padding_adds_is_q_and_o_of_the_heads_that_fill_up(models):
    """Groups of 5, 1, 1 and 1 are filled up to 5: twelve heads more of 16 rows of 64, in q and o of 3 layers."""
    folder = models("llama", heads=8, kv_heads=8)
    checkpoint = Checkpoint.open(folder)
    a = Architecture.of(checkpoint.config)
    layout = HeadLayout.from_labels([[0, 0, 0, 0, 0, 1, 2, 3]] * 3, 8, 16)
    total = sum(checkpoint.tensor(name).numel() for name in checkpoint.tensors)
    share = 2 * 12 * 16 * 64 * 3 / total
    assert slots_for(layout).query_heads == 20 and overhead(checkpoint, a, layout) == pytest.approx(share)
    for most, kind in ((share * 0.999, "ragged"), (share * 1.001, "padded")):
        chosen, note = class_for(checkpoint, a, layout, most)
        assert chosen.name == kind and (note is None) == (kind == "padded")


UNEVEN = [[0, 1, 1, 1]] * 4


@pytest.mark.parametrize(
    ("model_type", "more", "why"),
    [
        ("llama", {}, None), ("llama", {"mlp_bias": True}, "no MLP biases"),
        ("llama", {"mlp_bias": True, "attention_bias": True, "hidden_size": 96}, None),
        ("llama", {"attention_bias": True, "hidden_size": 64}, "wants hidden_size 64 to divide by 12 heads"),
        ("qwen2", {"hidden_size": 96}, None), ("qwen2", {}, "wants hidden_size 64 to divide by 12 heads"),
        ("qwen2", {"hidden_size": 96, "use_sliding_window": True, "sliding_window": 8}, "no sliding window"),
        ("gemma2", {"hidden_size": 96}, None), ("gemma2", {}, "a gemma2 wants hidden_size 64"),
        ("mistral", {"sliding_window": 8}, None), ("olmo2", {}, "no class carries olmo2 models"),
    ],
)  # fmt: skip
def test_what_can_be_padded(reader, model_type, more, why):
    checkpoint = Checkpoint.open(reader)
    checkpoint._config = {"model_type": model_type, **SIZE, **more}
    a = Architecture.of(checkpoint.config)
    said = CLASSES["padded"].refusal(checkpoint, a, HeadLayout.from_labels(UNEVEN, 8, 16), max_padding=9.0)
    assert said is None if why is None else why in said


def test_a_padded_models_class_and_counts():
    layout = HeadLayout.from_labels(UNEVEN, 8, 16)
    counts = {"num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 16}
    llama = config_of("padded", "llama", layout, rms_norm_eps=0.5)
    assert llama == {**SIZE, **counts, "model_type": "mistral", "architectures": ["MistralForCausalLM"],
                     "sliding_window": None, "rms_norm_eps": 0.5}  # fmt: skip
    windows = {"sliding_window": 8, "layer_types": ["full_attention"] * 4, "use_sliding_window": False,
               "max_window_layers": 2}  # fmt: skip
    qwen = config_of("padded", "qwen2", layout, **windows)
    assert qwen == {**SIZE, **counts, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
                    "attention_bias": True, "mlp_bias": False}  # fmt: skip
    biased = config_of("padded", "llama", layout, attention_bias=True, mlp_bias=True)
    assert biased["model_type"] == "llama" and biased["mlp_bias"] is True
    own = config_of("padded", "mistral", layout, sliding_window=8)
    assert own == {**SIZE, **counts, "model_type": "mistral", "architectures": ["MistralForCausalLM"],
                   "sliding_window": 8}  # fmt: skip


def test_a_stock_models_class_and_counts():
    layout = HeadLayout.from_labels([[0, 0, 1, 1]] * 4, 8, 16)
    config = config_of("stock", "qwen3", layout, rope_theta=7.0)
    assert config == {**SIZE, "num_key_value_heads": 2, "model_type": "qwen3", "rope_theta": 7.0,
                      "architectures": ["Qwen3ForCausalLM"]}  # fmt: skip
    text = {"model_type": "llama", **SIZE}
    outer = {"model_type": "llava", "text_config": text, "architectures": ["LlavaForConditionalGeneration"]}
    nested = CLASSES["stock"].config(outer, Architecture.of(outer), layout, set())
    assert nested == {**outer, "text_config": {**text, "num_key_value_heads": 2}}


# engines.py


@pytest.mark.parametrize(
    ("model_type", "more", "stock", "padded", "ragged"),
    [
        ("llama", {}, "transformers, vLLM, llama.cpp", "transformers, vLLM, llama.cpp", "remote, vLLM, llama.cpp"),
        ("qwen2", {}, "transformers, vLLM, llama.cpp", "transformers, llama.cpp", "remote, vLLM, llama.cpp"),
        ("mixtral", {}, "transformers, vLLM", "transformers", "remote, vLLM"),
        ("gpt_oss", {}, "transformers, vLLM", "transformers, vLLM", "remote"),
        ("cohere", {}, "transformers, vLLM", "transformers", "remote, vLLM"),
        ("qwen3_moe", {}, "transformers", "transformers", "remote"),
        ("qwen2_moe", {}, "transformers", "transformers", "5 remote"),
        ("olmoe", {}, "transformers", None, "5 remote"), ("stablelm", {}, "transformers, vLLM", None, "5 remote, vLLM"),
        ("gpt_neox", {}, "transformers, vLLM", None, "remote, vLLM"),
        ("gpt_neox", {"use_parallel_residual": False}, None, None, "remote"),
        ("bloom", {}, None, None, "remote"), ("bert", {}, None, None, "5 remote"),
        ("vit", {}, None, None, "5.12 remote"), ("t5", {"num_heads": 8, "d_kv": 16}, None, None, "5.15 remote"),
    ],
)  # fmt: skip
def test_engines(model_type, more, stock, padded, ragged):
    """As bench/engines found."""
    a = architecture(model_type, **more)
    names = {
        "remote": "transformers with trust_remote_code", "5 remote": "transformers 5 with trust_remote_code",
        "5.12 remote": "transformers from 5.12 on with trust_remote_code",
        "5.15 remote": "transformers from 5.15 on with trust_remote_code",
        "llama.cpp": "llama.cpp (--format gguf)",
    }  # fmt: skip
    for kind, said in (("stock", stock), ("padded", padded), ("ragged", ragged)):
        if said:
            wanted = [names.get(one, one) for one in said.split(", ")]
            if kind == "ragged":
                wanted = [f"{one} with trust_remote_code" if one == "vLLM" else one for one in wanted]
            assert engines_for(a, kind) == wanted, kind


def test_decoders_in_larger_models_run_in_transformers_alone():
    outer = {"model_type": "llava", "text_config": {"model_type": "llama", **SIZE}}
    assert engines_for(Architecture.of(outer), "stock") == ["transformers"]


# readers.py, tokenizer.py


def test_older_readers_find_what_newer_ones_call_otherwise():
    rope = {"rope_theta": 7.0, "rope_type": "llama3", "factor": 8.0, "partial_rotary_factor": 0.5}
    given = {"model_type": "gpt_neox", "rope_parameters": rope, "_name_or_path": "/home/me"}
    config = readable_by_all(given, "float16")
    assert config == {
        "model_type": "gpt_neox", "rope_parameters": rope, "rope_theta": 7.0, "rotary_pct": 0.5, "rotary_emb_base": 7.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "dtype": "float16", "torch_dtype": "float16",
    }  # fmt: skip
    kept = readable_by_all({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 9.0, "torch_dtype": "x"}, "bfloat16")
    assert kept["rope_theta"] == 9.0 and kept["torch_dtype"] == kept["dtype"] == "bfloat16"
    for model_type in ("qwen3_moe", "grouper_ragged_qwen3_moe"):
        assert readable_by_all({"model_type": model_type, "num_local_experts": 4}, "x")["num_experts"] == 4
    assert "num_experts" not in readable_by_all({"model_type": "mixtral", "num_local_experts": 4}, "x")
    outer = readable_by_all({"text_config": {"rope_parameters": {"rope_theta": 7.0}}}, "float32")
    assert outer["text_config"]["rope_theta"] == 7.0 and outer["text_config"]["dtype"] == "float32"


def test_a_class_that_older_transformers_do_not_know_is_not_named(tmp_path):
    folder = add_tokenizer(make_model(tmp_path / "in", "qwen2", 8, 8, vocab_size=4096))
    (folder / "tokenizer_config.json").unlink()
    layout = HeadLayout.from_labels([[0, 0, 1, 2, 3, 3, 3, 3]] * SIZES["num_hidden_layers"], 8, 16)
    export(folder, layout, tmp_path / "out", options=ExportOptions(max_padding=0.0))
    named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert named == type(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)).__name__


@pytest.mark.parametrize(
    ("loaded", "facts", "named"),
    [
        ("TokenizersBackend", {"a": 1}, "PreTrainedTokenizerFast"), ("Qwen2Tokenizer", {}, "Qwen2Tokenizer"),
        ("Qwen2Tokenizer", {"tokenizer_class": "Mine"}, "Mine"),
    ],
)  # fmt: skip
def test_what_transformers_5_calls_any_tokenizer_has_its_older_name(tmp_path, monkeypatch, loaded, facts, named):
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, **_: type(loaded, (), {})())
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(facts))
    name_tokenizer_class(tmp_path, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {**facts, "tokenizer_class": named}


# All classes


@pytest.mark.parametrize(
    ("name", "rows"), [("llama", EVEN), ("llama", RAGGED), ("gptj", EVEN), ("gpt2", RAGGED), ("qwen2", PADDED)]
)
def test_weights_stay_in_the_type_that_they_were_stored_in(samples, tmp_path, name, rows):
    """Half of the bytes, and a configuration that says so."""
    model = AutoModelForCausalLM.from_pretrained(samples(name), dtype=torch.bfloat16, trust_remote_code=False)
    model.save_pretrained(tmp_path / "in")
    layout = layout_for(tmp_path / "in", rows)
    export(tmp_path / "in", layout, tmp_path / "out", merge="spectral", options=ExportOptions(max_padding=9.0))
    written = Checkpoint.open(tmp_path / "out")
    assert {one.dtype for one in written.tensors.values()} == {"BF16"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_layouts_of_other_models_are_refused_whatever_differs(models):
    checkpoint = Checkpoint.open(models("llama", heads=8, kv_heads=4))
    whole = Architecture.of(checkpoint.config).ungrouped
    check_same_model(checkpoint, whole)
    others = {
        "2 layers": HeadLayout(whole.layers[:2], 8, 4, 16), "of 8$": HeadLayout(whole.layers, 8, 4, 8),
        "8 KV heads": HeadLayout.from_labels([range(8)] * 3, 8, 16),
        "16 query": HeadLayout.from_labels([range(4)] * 3, 16, 16),
    }  # fmt: skip
    for words, layout in others.items():
        with pytest.raises(GrouperError, match=words.replace("of 8$", "of 8, the model has 3 of 8 and 4 of 16")):
            check_same_model(checkpoint, layout)


def test_which_shared_queries_no_modelling_file_takes():
    kv, queries = Grouping.from_labels([0, 1, 0, 1], 2), Grouping.from_labels([0, 0, 1, 1, 2, 2, 3, 3])
    layout = HeadLayout((LayerLayout(kv, kv, queries),) * 4, 8, 4, 16)

    def said(model_type: str, layout: HeadLayout = layout) -> str | None:
        return CLASSES["ragged"].refusal(None, architecture(model_type), layout, 0.0)

    assert said("llama") is None and "phi3 models that share query" in said("phi3")
    assert "gpt2 models that share query" in said("gpt2") and "norm across all query heads" in said("olmo2")
    plain = HeadLayout((LayerLayout.shared(kv),) * 4, 8, 4, 16)
    assert [said(m, plain) for m in ("llama", "phi3", "gpt2", "olmo2")] == [None] * 4
    outer = Architecture.of({"model_type": "llava", "text_config": {"model_type": "llama", **SIZE}})
    assert "take a layout of class stock" in CLASSES["ragged"].refusal(None, outer, plain, 0.0)
    assert "no class of transformers holds gpt2" in CLASSES["stock"].refusal(None, architecture("gpt2"), plain, 0.0)


def test_weights_of_attention_are_those_of_the_query_heads_in_their_groups_order(models, prompt, tmp_path):
    """As eager attention gives them, beside those of the same model with the groups' heads repeated."""
    folder = models("llama", heads=8, kv_heads=8)
    layout = HeadLayout.from_labels([[0, 1, 1, 2, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2, 3, 3], [0] * 8], 8, 16)
    export(folder, layout, tmp_path / "out")
    options = {"attn_implementation": "eager", "dtype": torch.float64}
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, **options).eval()
    gathered(folder, tmp_path / "in", layout)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "in", trust_remote_code=False, **options).eval()
    with torch.inference_mode():
        got, wanted = (model(prompt, output_attentions=True).attentions for model in (ours, theirs))
    for one, layer_wanted, layer in zip(got, wanted, layout.layers):
        assert torch.allclose(one, layer_wanted[:, layer.k.reader_order], atol=1e-6)
