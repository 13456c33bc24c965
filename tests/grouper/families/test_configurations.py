"""Models as people have them: old names, half precision, released configurations, and those that are refused."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from family_samples import EQUAL, gathered, layout_for, logits
from safetensors.torch import load_file, save_file
from tiny_models import ROOT, make_model

from grouper import Architecture, Checkpoint, ExportOptions, GrouperError, export
from grouper.families.decoders import FAMILIES, REFUSED
from grouper.families.inspection import inspect
from grouper.families.table import family_rows, markdown

OLD = {  # family: (names as checkpoints on the Hub have them, tensors that are no parameters)
    "llama": (lambda n: n.removeprefix("model."), {"layers.0.self_attn.rotary_emb.inv_freq": (4,)}),
    "gpt2": (lambda n: n.removeprefix("transformer."), {"h.0.attn.bias": (1, 1, 128, 128), "h.0.attn.masked_bias": ()}),
    "gpt_neox": (
        lambda n: n,
        {"gpt_neox.layers.0.attention.bias": (1, 1, 128, 128), "gpt_neox.layers.0.attention.masked_bias": ()},
    ),
    "falcon": (lambda n: n, {}),
    "bloom": (lambda n: n.removeprefix("transformer."), {}),
    "opt": (lambda n: n.removeprefix("model."), {}),
    "mixtral": (lambda n: n, {}),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OLD)
def test_checkpoints_as_they_come(samples, tmp_path, prompt, name, dtype):
    """Half precision, names without a prefix, buffers of old releases."""
    rename, buffers = OLD[name]
    folder = tmp_path / "old"
    shutil.copytree(samples(name), folder)
    tensors = {rename(n): t.to(dtype) for n, t in load_file(folder / "model.safetensors").items()}
    tensors |= {n: torch.ones(shape, dtype=dtype) for n, shape in buffers.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    layout = layout_for(folder, EQUAL)
    done = export(folder, layout, tmp_path / "out", options=ExportOptions(shard_bytes=50_000))
    exported = Checkpoint.open(tmp_path / "out")
    assert (
        done.self_test.passed
        and len(exported.weight_files) > 1
        and {t.torch_dtype for t in exported.tensors.values()} == {dtype}
    )
    if name not in ("gpt_neox", "falcon"):  # as Phi: folded weights are rounded once more
        expected = logits(gathered(folder, tmp_path / "reference", layout), prompt)
        assert (logits(tmp_path / "out", prompt) - expected).abs().max() < 1e-4
        assert all(torch.equal(exported.tensor(n), torch.ones(shape, dtype=dtype)) for n, shape in buffers.items())


CONFIGURATIONS = {  # as released: (config.json's facts; layers, query heads, KV heads, head_dim, rotary_dim, context)
    "SmolLM2-135M": (
        {"model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "num_hidden_layers": 30,
         "max_position_embeddings": 8192}, (30, 9, 3, 64, 64, 8192)),
    "llama-13b": (
        {"model_type": "llama", "hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40,
        "max_position_embeddings": 2048},
        (40, 40, 40, 128, 128, 2048)),
    "OLMo-1B": (
        {"model_type": "olmo", "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 16,
        "max_position_embeddings": 2048},
        (16, 16, 16, 128, 128, 2048)),
    "pythia-70m": (
        {"model_type": "gpt_neox", "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 6,
        "rotary_pct": 0.25,
         "max_position_embeddings": 2048}, (6, 8, 8, 64, 16, 2048)),
    "gpt-j-6b": (
        {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "n_positions": 2048, "rotary_dim": 64},
        (28, 16, 16, 256, 64, 2048)),
    "falcon-40b": (
        {"model_type": "falcon", "hidden_size": 8192, "n_head": 128, "n_head_kv": 8, "n_layer": 60,
        "new_decoder_architecture": True},
        (60, 128, 8, 64, 64, 2048)),
    "falcon-7b": ({"model_type": "falcon", "hidden_size": 4544, "n_head": 71, "n_layer": 32, "multi_query": True}, (32,
    71, 1, 64, 64, 2048)),
    "bloom-560m": ({"model_type": "bloom", "n_embed": 1024, "n_layer": 24, "num_attention_heads": 16}, (24, 16, 16, 64,
    0, 0)),
    "mpt-7b": ({"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048}, (32, 32, 32,
    128, 0, 2048)),
    "gpt2": ({"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}, (12, 12, 12, 64,
    0, 1024)),
    "phi-2": (
        {"model_type": "phi", "hidden_size": 2560, "num_attention_heads": 32, "num_hidden_layers": 32,
        "partial_rotary_factor": 0.4,
         "max_position_embeddings": 2048}, (32, 32, 32, 80, 32, 2048)),
    "Phi-4-mini": (
        {"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8,
        "num_hidden_layers": 32,
         "partial_rotary_factor": 0.75, "max_position_embeddings": 131072}, (32, 24, 8, 128, 96, 131072)),
    "llava-1.5-7b": ({"model_type": "llava", "text_config": {"model_type": "llama", "max_position_embeddings": 4096}},
    (32, 32, 32, 128, 128, 4096)),
    "gemma-3-4b": (
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560,
        "num_hidden_layers": 34, "sliding_window": 1024}},
        (34, 8, 4, 256, 256, 131072)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_as_they_come(name):
    config, expected = CONFIGURATIONS[name]
    a = Architecture.of(config)
    assert (a.layers, a.query_heads, a.kv_heads, a.head_dim, a.rotary_dim, a.context) == expected
    if name == "gemma-3-4b":
        assert [w is None for w in a.windows].count(True) == 5 and a.windows[0] == 1024, (
            "every sixth layer sees everything"
        )


@pytest.mark.parametrize("kind", ["dynamic", "linear"])
def test_rope_scaling_in_its_old_spelling_becomes_phis(samples, tmp_path, kind):
    folder = shutil.copytree(samples("gpt_neox"), tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    more = {"rope_scaling": {"type": kind, "factor": 4.0}, "rotary_pct": 0.5, "max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    export(folder, layout_for(folder, [range(4)] * 2), tmp_path / "out")
    beyond = torch.randint(2, 199, (1, 100), generator=torch.Generator().manual_seed(4))
    reference = gathered(folder, tmp_path / "reference", layout_for(folder, [range(4)] * 2))
    assert (logits(tmp_path / "out", beyond) - logits(reference, beyond)).abs().max() < 1e-4


def test_refusals_name_the_model_and_the_reason():
    for name, why in REFUSED.items():
        with pytest.raises(GrouperError, match=rf"{name}.*cannot be regrouped: {re.escape(why)}"):
            Architecture.of({"model_type": name})
    with pytest.raises(GrouperError, match=r"'pegasos' are not supported: the installed transformers .* has no models"):
        Architecture.of({"model_type": "pegasos"})
    with pytest.raises(
        GrouperError, match="'voxtral' are not supported: of those that hold a decoder, only vision-language"
    ):
        Architecture.of({"model_type": "voxtral", "text_config": {"model_type": "llama"}})
    for family, key in (("stablelm", "qk_layernorm"), ("phi", "qk_layernorm"), ("cohere", "use_qk_norm")):
        with pytest.raises(GrouperError, match=f"gains for each head .{key}"):
            Architecture.of({"model_type": family, key: True})


def test_windows_hold_no_more_than_their_tokens(samples):
    found = inspect(Checkpoint.open(samples("gemma3_text")), context=1000)
    assert found.sliding_layers == 1 and found.kv_bytes_at_context == (8 + 1000) * 2 * 4 * 16 * 2
    assert inspect(Checkpoint.open(samples("llama")), context=1000).kv_bytes_at_context == 2 * 1000 * 2 * 4 * 16 * 2


def test_windows_and_layers_without_rope_are_told(samples, tmp_path):
    """The last one of three layers has a window, so that no Llama carries a padded export."""
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    found = inspect(Checkpoint.open(make_model(tmp_path, "qwen2", **window)))
    assert (found.sliding_layers, found.export_classes) == (1, ["stock", "ragged"])
    assert inspect(Checkpoint.open(samples("smollm3"))).rope == "half-split pairs, none in 1 layers"
    assert inspect(Checkpoint.open(samples("llama"))).rope == "half-split pairs"


def test_the_readme_has_the_table_that_the_command_prints():
    assert markdown(family_rows()) in (ROOT / "docs" / "families.md").read_text()


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.encodes])
def test_a_head_dim_that_is_left_out_is_what_the_class_takes(name):
    """Sizes that do not give any class's own constant: 10 heads of 34."""
    from transformers import CONFIG_MAPPING

    sizes = {"num_attention_heads": 10, "hidden_size": 340, "num_hidden_layers": 2, "num_key_value_heads": 10}
    made = CONFIG_MAPPING[name](**sizes)
    theirs = getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads
    text = {"model_type": name, "multi_query": False, **sizes}
    assert Architecture.of(text).head_dim == theirs


def test_inspection_imports_no_library_that_takes_seconds(samples):
    """A Qwen2 whose config.json leaves head_dim out."""
    program = (
        "import sys; from grouper import Checkpoint, inspect; inspect(Checkpoint.open(sys.argv[1])); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program, samples("qwen2")], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
