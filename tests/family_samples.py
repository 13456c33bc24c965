"""One line a family: a tiny random model of the real transformers class, and what every model must pass, real ones
too."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from grouper import Architecture, Checkpoint, ExportOptions, HeadLayout, export
from grouper.compress import Regrouper
from grouper.families.derived.random_models import make_heads_matter
from grouper.layout import groups_of
from grouper.merging import MERGES
from grouper.refinement.options import RefineOptions
from grouper.refinement.refine import refine_layers
from grouper.running.in_memory import InMemoryModel, in_double
from search import RunFolder, SearchOptions, pick, search

COMMON = {"vocab_size": 199, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
MHA = {
    **COMMON,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
}
GQA = {**MHA, "num_key_value_heads": 4}
WIDE = {**GQA, "head_dim": 16}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
GPT = {
    **COMMON,
    "n_layer": 2,
    "n_head": 8,
    "n_embd": 64,
    "n_positions": 128,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
SAMPLES = {
    "llama": ("llama", WIDE),
    "llama-biased": ("llama", {**MHA, "hidden_size": 96, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**WIDE, "sliding_window": 8}),
    "mixtral": ("mixtral", {**GQA, "num_local_experts": 4}),
    "qwen2": ("qwen2", {**GQA, "hidden_size": 96}),
    "qwen2-windows": ("qwen2", {**GQA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2_moe": ("qwen2_moe", {**GQA, **MOE}),
    "qwen3": ("qwen3", WIDE),
    "qwen3_moe": ("qwen3_moe", {**WIDE, **MOE}),
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", {**WIDE, "hidden_size": 96, "sliding_window": 8}),
    "gemma3_text": (
        "gemma3_text",
        {**WIDE, "hidden_size": 96, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "olmo": ("olmo", GQA),
    "olmo2": ("olmo2", GQA),
    "olmo3": ("olmo3", {**GQA, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmoe": ("olmoe", {**GQA, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("gpt_oss", {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "stablelm": ("stablelm", {**GQA, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "starcoder2": ("starcoder2", {**GQA, "sliding_window": 8}),
    "granite": ("granite", {**GQA, "residual_multiplier": 0.5, "attention_multiplier": 0.2}),
    "smollm3": ("smollm3", {**GQA, "no_rope_layers": [1, 0]}),
    "cohere": ("cohere", GQA),
    "phi": ("phi", GQA),
    "phi3": ("phi3", GQA),
    "phi3-partial": ("phi3", {**GQA, "partial_rotary_factor": 0.5}),
    "gpt_neox": ("gpt_neox", {**MHA, "rotary_pct": 0.5}),
    "gpt_neox-sequential": ("gpt_neox", {**MHA, "use_parallel_residual": False}),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "falcon": ("falcon", {**MHA, "new_decoder_architecture": True, "num_kv_heads": 4}),
    "falcon-one-norm": (
        "falcon",
        {**MHA, "new_decoder_architecture": True, "num_kv_heads": 4, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-multi-head": ("falcon", {**MHA, "multi_query": False, "bias": True}),
    "falcon-alibi": ("falcon", {**MHA, "multi_query": False, "alibi": True, "parallel_attn": False, "bias": True}),
    "gpt2": ("gpt2", GPT),
    "opt": ("opt", {**MHA, "ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0}),
    "opt-norm-behind": (
        "opt",
        {**MHA, "ffn_dim": 96, "word_embed_proj_dim": 32, "dropout": 0.0, "do_layer_norm_before": False},
    ),
    "bloom": ("bloom", {**COMMON, "n_layer": 2, "n_head": 8, "hidden_size": 64}),
    "mpt": ("mpt", {**COMMON, "n_layers": 2, "n_heads": 8, "d_model": 64, "max_seq_len": 128}),
}
EQUAL = [[0, 1, 0, 1], [0, 1, 1, 0]]
UNEQUAL = [[0, 0, 1, 0], [0, 1, 1, 1]]
RAGGED = [[0, 0, 1, 0], [0, 1, 2, 1]]


def make(folder: Path, family: str, options: dict) -> Path:
    """Of random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options), trust_remote_code=False)
    make_heads_matter(model)
    model.save_pretrained(folder)
    return folder


def layout_for(folder: Path, rows: list[list[int]]) -> HeadLayout:
    a = Architecture.of(Checkpoint.open(folder).config)
    return HeadLayout.from_labels(
        [[g for g in row for _ in range(a.kv_heads // 4)] for row in rows], a.query_heads, a.head_dim
    )


def with_heads(folder: Path, target: Path, change) -> Path:
    """A copy of the model, of its own class, with `change(layer, k, v, name)` applied to K and V heads, biases and
    gains: [G, d, ...] in place."""
    checkpoint = Checkpoint.open(folder)
    a = Architecture.of(checkpoint.config)
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    for layer in range(a.layers):
        attention = a.read(checkpoint, layer)
        for name in ("k", "v", "k_bias", "v_bias", "k_norm"):
            heads = getattr(attention, name)
            if heads is not None and not (name == "k_norm" and attention.qk_norm == "head"):
                setattr(attention, name, change(layer, heads))
        for name, tensor in a.tensors(a.prefix(checkpoint, layer), attention):
            tensors[name] = tensor.contiguous().to(tensors[name].dtype)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def gathered(folder: Path, target: Path, layout: HeadLayout) -> Path:
    """The reference: the original class, every KV head of a group replaced by the group's mean."""

    def mean(layer: int, heads: torch.Tensor) -> torch.Tensor:
        out = heads.clone()
        for sources in layout.layers[layer].k.members:
            out[list(sources)] = heads[list(sources)].mean(0)
        return out

    return with_heads(folder, target, mean)


# What every model must pass. Used on real weights, too, which amplify rounding: logits are compared in float64.


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    options = in_double(Checkpoint.open(folder).config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, trust_remote_code=True, **options).eval()
    with torch.inference_mode():
        return model(tokens).logits


def check_identity(folder: Path, tmp_path: Path, prompt: torch.Tensor, merge: str) -> None:
    a = Architecture.of(Checkpoint.open(folder).config)
    layout = HeadLayout.from_labels([range(a.kv_heads)] * a.layers, a.query_heads, a.head_dim)
    done = export(folder, layout, tmp_path / "out", merge=merge)
    assert done.export_class == ("ragged" if a.needs_own_attention else "stock")
    assert (logits(tmp_path / "out", prompt) - logits(folder, prompt)).abs().max() < 1e-4


def check_reference(folder: Path, tmp_path: Path, prompt: torch.Tensor, layouts: dict[str, HeadLayout]) -> None:
    """layouts: by the class that they allow."""
    from transformers import AutoModelForCausalLM

    a = Architecture.of(Checkpoint.open(folder).config)
    for kind, layout in layouts.items():
        done = export(folder, layout, tmp_path / kind, options=ExportOptions(max_padding=9.0))
        wanted = {
            "stock": "ragged" if a.needs_own_attention else "stock",
            "padded": "padded" if a.family.padded else "ragged",
            "ragged": "ragged",
        }
        assert done.export_class == wanted[kind] or (kind == "padded" and "divide by" in done.note), done.note
        if (
            kind == "stock" or a.family.qk_norm != "all"
        ):  # a norm across K heads sees each of them once; the self-test knows
            expected = logits(gathered(folder, tmp_path / f"{kind}-reference", layout), prompt)
            assert (logits(tmp_path / kind, prompt) - expected).abs().max() < 1e-4, done.export_class
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / kind, dtype=torch.float32, trust_remote_code=True
        ).eval()
        options = {
            "max_new_tokens": 6,
            "min_new_tokens": 6,
            "do_sample": False,
            "attention_mask": torch.ones(1, prompt.shape[1]),
        }
        written = model.generate(prompt[:1], **options)
        assert written.shape == (1, prompt.shape[1] + 6)
        assert written.tolist() == model.generate(prompt[:1], use_cache=False, **options).tolist()
        cached = [layer.keys.shape[1] for layer in model(prompt, use_cache=True)[1].layers]
        assert cached == [layer.k.kv_heads for layer in layout.layers], "the cache has the layout's heads"


def check_planted(
    folder: Path, tmp_path: Path, prompt: torch.Tensor, labels: list[list[int]], tolerance: float = 1e-4
) -> None:
    """labels[layer]: the heads that are made equal. tolerance: of the spectral merge, whose new basis is rounded; the
    mean's is 1e-4."""
    planted = with_heads(folder, tmp_path / "planted", lambda layer, k: k[labels[layer]])
    front = search(planted, tmp_path / "run", SearchOptions(generations=4, population=16, fitness="weight"))
    heads = len(labels[0])
    found = pick(front, "mean", kv_ratio=f"{len(set(labels[0]))}/{heads}", deploy="any")
    layout = RunFolder(tmp_path / "run").layout(found.layout)
    assert [layer.k.members for layer in layout.layers] == [groups_of(row) for row in labels]
    wanted = logits(planted, prompt)
    for merge in ("mean", "spectral"):
        export(planted, layout, tmp_path / merge, merge=merge)
        limit = tolerance if merge == "spectral" else 1e-4
        assert (logits(tmp_path / merge, prompt) - wanted).abs().max() < limit, merge


def check_refined(
    folder: Path, tmp_path: Path, prompt: torch.Tensor, layouts: list[HeadLayout], windows: torch.Tensor
) -> None:
    checkpoint = Checkpoint.open(folder)
    search(folder, tmp_path / "run", SearchOptions(generations=2, population=8))
    ours = Regrouper(checkpoint)
    for number, (layout, scope) in enumerate(zip(layouts, ("attention", "block"))):
        start = ours.merged(layout, MERGES["spectral"].before_refinement())
        options = RefineOptions(scope, steps=8, batch_tokens=64)
        layers = refine_layers(InMemoryModel(checkpoint), layout, start, windows, options)
        done = [layers(i) for i in range(len(layout.layers))]
        assert all(layer.after <= layer.before for layer in done) and any(layer.after < layer.before for layer in done)
        done = export(folder, layout, tmp_path / str(number), merge="spectral+refine", merged=layers)
        assert done.self_test.passed and torch.isfinite(logits(tmp_path / str(number), prompt)).all()
        assert done.kv_bytes_per_token[1] == layout.kv_bytes_per_token()
