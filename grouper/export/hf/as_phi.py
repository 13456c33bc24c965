"""Export of GPT-NeoX, GPT-J and Falcon as Phi, a class with the same computation that accepts fewer KV heads than query
heads.

All of them have parallel residuals, x + attention(norm(x)) + MLP(norm'(x)), LayerNorms, rotary positions and a
two-layer MLP. Phi has one norm for both branches. Where a model has two, their gains and biases are folded into the
layers that follow them, which is exact. GPT-J's interleaved planes are reordered to Phi's.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import PARTS, Attention, Merged, MergedLayer, Projection
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.families.architecture import Architecture
from grouper.families.configuration import setting
from grouper.families.decoders import FAMILIES
from grouper.families.storage import stored_tensors

MLP = {
    "gpt_neox": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "gptj": ("mlp.fc_in", "mlp.fc_out"),
    "falcon": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
}
MLP_NORM = {"gpt_neox": "post_attention_layernorm", "falcon": "ln_mlp"}  # families whose MLP has a norm of its own
OUTSIDE = {  # Phi's names -> those of the families
    "model.embed_tokens": ("embed_in", "wte", "word_embeddings"),
    "model.final_layernorm": ("final_layer_norm", "ln_f"),
    "lm_head": ("embed_out", "lm_head"),
}


def phi_config(config: dict, a: Architecture) -> dict:
    """Contents of config.json for the same model as a multi-head (or grouped) Phi, without custom code."""
    activation = next((config[k] for k in ("hidden_act", "activation_function", "activation") if k in config), None)
    theta = (
        (config.get("rope_parameters") or {}).get("rope_theta")
        or config.get("rotary_emb_base")
        or config.get("rope_theta")
        or 10000.0
    )
    scaling = {
        k: v
        for k, v in (config.get("rope_scaling") or config.get("rope_parameters") or {}).items()
        if k != "rope_theta"
    }
    old_name = scaling.pop("type", None)
    scaling["rope_type"] = scaling.get("rope_type") or old_name or "default"
    epsilon = next((config[k] for k in ("layer_norm_eps", "layer_norm_epsilon") if k in config), 1e-5)
    inner = next((config[k] for k in ("ffn_hidden_size", "n_inner") if config.get(k)), None)
    if inner is None:
        inner = setting(config, "intermediate_size") if a.family.model_type == "gpt_neox" else 4 * a.hidden_size
    tokens = {k: setting(config, k, None) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        **tokens, "model_type": "phi", "architectures": ["PhiForCausalLM"], "vocab_size": setting(config, "vocab_size"),
        "hidden_size": a.hidden_size,
        "intermediate_size": inner, "num_hidden_layers": a.layers, "num_attention_heads": a.query_heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim, "hidden_act": activation or {"gpt_neox": "gelu", "gptj": "gelu_new",
        "falcon": "gelu"}[a.family.model_type],
        "max_position_embeddings": setting(config, "max_position_embeddings"), "layer_norm_eps": epsilon,
        "qk_layernorm": False,
        "rope_parameters": {**scaling, "rope_theta": theta, "partial_rotary_factor": a.rotary_dim / a.head_dim},
        "partial_rotary_factor": a.rotary_dim / a.head_dim,
        "tie_word_embeddings": setting(config, "tie_word_embeddings", False), "attention_dropout": 0.0,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    }  # fmt: skip


def phi_tensors(
    checkpoint: Checkpoint,
    a: Architecture,
    merged: Merged,
    arranged: Callable[[MergedLayer, int], Attention],
    rounded: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the Phi model. arranged(merged, layer): the merged attention, with heads in the order in which
    they are written. rounded: round to the checkpoint's dtype; otherwise layers come in float64, because a folded
    product rounds differently from its factors."""
    stem = a.prefix(checkpoint, 0).removesuffix(a.family.layer.format(layer=0))
    outside: dict[str, str] = {}
    for new, olds in OUTSIDE.items():
        for kind in ("weight", "bias"):
            found = [n for old in olds for n in (f"{stem}{old}.{kind}", f"{old}.{kind}") if n in checkpoint]
            outside |= {f"{new}.{kind}": found[0]} if found else {}
    yield from ((new, checkpoint.tensor(old)) for new, old in outside.items())
    if "lm_head.bias" not in outside:
        vocabulary = checkpoint.tensors[outside["model.embed_tokens.weight"]].shape[0]
        yield "lm_head.bias", torch.zeros(vocabulary, dtype=a.stored_dtype(checkpoint, 0))
    for layer in range(a.layers):
        done = merged(layer)
        attention = arranged(done, layer).to(torch.float64)
        for name, tensor in _layer(checkpoint, a, layer, done, attention):
            yield name, tensor.to(a.stored_dtype(checkpoint, layer)) if rounded else tensor


def _layer(
    checkpoint: Checkpoint, a: Architecture, layer: int, done: MergedLayer, attention: Attention
) -> Iterator[tuple[str, Tensor]]:
    here, new = a.prefix(checkpoint, layer), f"model.layers.{layer}."

    def old(name: str) -> Tensor:
        """Tensor as refinement left it."""
        return (done.others[name] if name in done.others else checkpoint.tensor(here + name)).double()

    def module(name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a module."""
        bias = f"{name}.bias"
        return old(f"{name}.weight"), old(bias) if here + bias in checkpoint else None

    first, second = MLP[a.family.model_type]
    norm = next(n for n in a.norms if f"{here}{n}.weight" in checkpoint)
    (gain, bias), (fc1, fc1_bias), (fc2, fc2_bias) = module(norm), module(first), module(second)
    own = MLP_NORM.get(a.family.model_type)
    if own and f"{here}{own}.weight" in checkpoint:
        attention = attention.with_projections(
            {part: _folded(attention.projection(part), gain, bias) for part in PARTS}
        )
        fc1, fc1_bias = _fold(fc1, fc1_bias, *module(own))
        gain, bias = torch.ones_like(gain), None
    attention = in_half_order(attention, a) if a.family.rope == "interleaved" else attention
    o_bias = torch.zeros(a.hidden_size) if attention.o_bias is None else attention.o_bias
    attention = replace(attention, o_bias=o_bias)
    projections = {part: attention.projection(part) for part in PARTS}
    attention = attention.with_projections({part: replace(one, bias=one.shift) for part, one in projections.items()})
    yield from stored_tensors(new, FAMILIES["phi"].storage, attention)
    for name, weight, shift in (
        ("input_layernorm", gain, bias),
        ("mlp.fc1", fc1, fc1_bias),
        ("mlp.fc2", fc2, fc2_bias),
    ):
        yield f"{new}{name}.weight", weight
        yield f"{new}{name}.bias", weight.new_zeros(len(weight)) if shift is None else shift  # Phi always has a bias


def _fold(weight: Tensor, weight_bias: Tensor | None, gain: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias with a preceding affine map folded in: weight [..., X, D] applied to g * x + b becomes weights
    applied to x."""
    shift = torch.zeros(weight.shape[:-1]) if bias is None else weight @ bias
    return weight * gain, shift if weight_bias is None else shift + weight_bias


def _folded(projection: Projection, gain: Tensor, bias: Tensor | None) -> Projection:
    return Projection(*_fold(projection.weight, projection.bias, gain, bias), projection.gain)


def in_half_order(attention: Attention, a: Architecture) -> Attention:
    """Attention with the rows of q and k reordered from interleaved planes (2i and 2i + 1) to halves (i and i + rotary
    / 2)."""
    order = torch.cat([a.planes[:, 0], a.planes[:, 1], torch.arange(a.rotary_dim, a.head_dim)])
    parts = {part: attention.projection(part).changed(lambda heads: heads[:, order]) for part in PARTS[:2]}
    return replace(attention.with_projections(parts), planes=None)
