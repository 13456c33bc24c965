"""Export class `padded`: one KV-head count and groups of any size, in a stock class. Every group is padded to the
largest with zero query heads.

Zero rows of q and zero columns of o add nothing to the output, and nothing to the KV cache. Their share of the weights
is limited. Not every class accepts more query heads than hidden_size / head_dim (see decoders.py). A Llama is written
as a Mistral, which is the same model without that check. Qwen2, whose head_dim serving engines take as hidden_size /
heads, is written as a Llama with biases if the heads divide hidden_size.
"""

from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.export.hf.export_class import ExportClass
from grouper.export.hf.stock import head_order
from grouper.families.architecture import Architecture
from grouper.families.decoders import DIVIDES, OWN
from grouper.layout import HeadLayout, LayerLayout


class Padded(ExportClass):
    name = "padded"

    def refusal(
        self, checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float
    ) -> str | None:
        share, query_heads = overhead(checkpoint, architecture, layout), padded_heads(layout)
        config, family, carrier = checkpoint.config, architecture.family, architecture.family.padded
        as_llama, size = _as_llama(config), architecture.hidden_size
        if carrier is None or architecture.nested:
            what = "vision-language models" if architecture.nested else f"{family.model_type} models"
            return f"no class carries {what} with more query heads than they have"
        if share > max_padding:
            largest = f"padding groups to {largest_group(layout)} query heads would add {share:.1%} of weights"
            return f"{largest}, more than `max_padding={max_padding:.0%}`"
        if carrier == "mistral" and config.get("mlp_bias") and not as_llama:
            return "a padded Llama goes out as a Mistral, which has no MLP biases"
        if (as_llama or carrier == DIVIDES) and size % query_heads:
            carried = (
                f"padded {family.model_type} with biases goes out as a Llama, which" if as_llama else family.model_type
            )
            return f"a {carried} wants hidden_size {size} to divide by {query_heads} heads"
        if carrier == "llama" and config.get("use_sliding_window"):
            return "a padded Qwen2 goes out as a Llama, which has no sliding window"
        return None

    def arranged(self, attention: Attention, layer: int, layout: HeadLayout, config: dict) -> Attention:
        return with_output_bias(padded_order(attention, layout.layers[layer], largest_group(layout)), config)

    def read(self, exported: Checkpoint, original: Checkpoint, layer: int, layout: HeadLayout) -> Attention:
        """Weights without the zero heads, and without an output bias that only the carrier class has."""
        attention = Architecture.of(exported.config).read(exported, layer)
        slots = filled_slots(layout.layers[layer], largest_group(layout))
        attention = head_order(attention, layout.layers[layer], slots)
        a = Architecture.of(original.config)
        has_bias = f"{a.prefix(original, layer)}{a.family.storage.o}.bias" in original
        return attention if has_bias else replace(attention, o_bias=None)

    def config(self, config: dict, architecture: Architecture, layout: HeadLayout, names: set[str]) -> dict:
        counts = {
            "num_attention_heads": padded_heads(layout), "num_key_value_heads": layout.layers[0].k.kv_heads,
            "head_dim": architecture.head_dim,
        }  # fmt: skip
        if _as_llama(config):
            windows = ("sliding_window", "layer_types", "use_sliding_window", "max_window_layers")
            without = {k: v for k, v in config.items() if k not in windows}
            biases = {"attention_bias": True, "mlp_bias": bool(config.get("mlp_bias"))}
            return {**without, **counts, "model_type": "llama", "architectures": ["LlamaForCausalLM"], **biases}
        if architecture.family.padded in (OWN, DIVIDES):
            return {**config, "architectures": [architecture.family.causal_lm], **counts}
        mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
        return {**config, **counts, **mistral}


def largest_group(layout: HeadLayout) -> int:
    return max(size for layer in layout.layers for size in layer.k.sizes)


def padded_heads(layout: HeadLayout) -> int:
    """Number of query heads of every layer after padding."""
    return layout.layers[0].k.kv_heads * largest_group(layout)


def overhead(checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout) -> float:
    """Weights that padding adds, as a share of the model's weights."""
    a = architecture
    extra = 2 * a.hidden_size * a.head_dim * (padded_heads(layout) - a.query_heads) * a.layers
    return extra / checkpoint.parameters


def _as_llama(config: dict) -> bool:
    biased = config["model_type"] in ("llama", "mistral") and bool(config.get("attention_bias"))
    return config["model_type"] == "qwen2" or biased


def padded_order(attention: Attention, layout: LayerLayout, largest: int) -> Attention:
    """Padded attention with q [G m, d, D] and o [D, G m, d]: slot g m + j holds the j-th reader of KV head g, or zeros.
    largest: m."""
    slots = torch.tensor(filled_slots(layout, largest))
    order = torch.tensor(layout.k.reader_order)

    def padded(tensor: Tensor) -> Tensor:  # [H, ...] -> [G m, ...]
        filled = tensor.new_zeros(layout.k.kv_heads * largest, *tensor.shape[1:])
        filled[slots] = tensor[order]
        return filled

    o = padded(attention.o.transpose(0, 1)).transpose(0, 1)
    sinks = None if attention.sinks is None else padded(attention.sinks)
    wider = replace(attention, q=padded(attention.q), q_bias=None, q_norm=None, o=o, sinks=sinks)
    return wider.with_projections({"q": attention.projection("q").changed(padded)})


def filled_slots(layout: LayerLayout, largest: int) -> list[int]:
    """Slots, among G x m, of the query heads in the order of the groups."""
    return [g * largest + j for g, readers in enumerate(layout.k.readers) for j in range(len(readers))]


def with_output_bias(attention: Attention, config: dict) -> Attention:
    """Attention with an output bias of zeros if it has none, because Llama's attention_bias adds one to o as well."""
    if not _as_llama(config) or attention.o_bias is not None:
        return attention
    return replace(attention, o_bias=attention.o.new_zeros(attention.o.shape[0]))
