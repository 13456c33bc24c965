"""Export class `padded`: one KV-head count and groups of any size, in a stock class. Every group is padded to the
largest with zero query heads, and further where engines could not split the heads over GPUs (slots.py).

Zero rows of q and zero columns of o add nothing to the output, and nothing to the KV cache. Zero KV heads, which only
tensor parallelism needs, are read by zero query heads alone, and take their part of the cache. The share of zero heads
in the weights is limited. Not every class accepts more query heads than hidden_size / head_dim (see decoders.py). A
Llama is written as a Mistral, which is the same model without that check. Qwen2, whose head_dim serving engines take as
hidden_size / heads, is written as a Llama with biases if the heads divide hidden_size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grouper.attention import PARTS, Attention
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.export.hf.export_class import ExportClass
from grouper.export.hf.slots import Slots, slots_for
from grouper.export.hf.stock import head_order
from grouper.families.architecture import Architecture
from grouper.families.decoders import DIVIDES, OWN
from grouper.layout import HeadLayout, LayerLayout


@dataclass(frozen=True)
class Padded(ExportClass):
    """tp: number of GPUs that engines can split the model over."""

    tp: int = 1
    name = "padded"

    def refusal(
        self, checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float
    ) -> str | None:
        slots = slots_for(layout, self.tp)
        share, query_heads = overhead(checkpoint, architecture, layout, self.tp), slots.query_heads
        config, family, carrier = checkpoint.config, architecture.family, architecture.family.padded
        as_llama, size = _as_llama(config), architecture.hidden_size
        if carrier is None or architecture.nested:
            what = "vision-language models" if architecture.nested else f"{family.model_type} models"
            return f"no class carries {what} with more query heads than they have"
        if share > max_padding:
            largest = f"padding groups to {slots.width} query heads would add {share:.1%} of weights"
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
        return with_output_bias(padded_order(attention, layout.layers[layer], slots_for(layout, self.tp)), config)

    def read(self, exported: Checkpoint, original: Checkpoint, layer: int, layout: HeadLayout) -> Attention:
        """Weights without the zero heads, and without an output bias that only the carrier class has."""
        written, one = Architecture.of(exported.config), layout.layers[layer]
        attention = head_order(written.read(exported, layer), one, filled_slots(one, written.queries_per_kv_head))
        kept = list(range(one.k.kv_heads))
        attention = attention.with_projections({part: attention.projection(part).taken(kept) for part in PARTS[1:]})
        a = Architecture.of(original.config)
        has_bias = f"{a.prefix(original, layer)}{a.family.storage.o}.bias" in original
        return attention if has_bias else replace(attention, o_bias=None)

    def config(self, config: dict, architecture: Architecture, layout: HeadLayout, names: set[str]) -> dict:
        slots = slots_for(layout, self.tp)
        counts = {
            "num_attention_heads": slots.query_heads, "num_key_value_heads": slots.kv_heads,
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


def overhead(checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, tp: int = 1) -> float:
    """Weights that zero heads add, as a share of the original's."""
    a, slots = architecture, slots_for(layout, tp)
    heads = slots.query_heads - a.query_heads + slots.kv_heads - layout.layers[0].k.kv_heads  # with o, or with v
    return 2 * a.hidden_size * a.head_dim * heads * a.layers / checkpoint.parameters


def _as_llama(config: dict) -> bool:
    biased = config["model_type"] in ("llama", "mistral") and bool(config.get("attention_bias"))
    return config["model_type"] == "qwen2" or biased


def padded_order(attention: Attention, layout: LayerLayout, slots: Slots) -> Attention:
    """Padded attention with q [G m, d, D], o [D, G m, d], k and v [G, d, D] (G, m: heads and width of the slots). Slot
    g m + j holds the j-th reader of KV head g, or zeros."""
    filled, order = torch.tensor(filled_slots(layout, slots.width)), torch.tensor(layout.k.reader_order)

    def queries(tensor: Tensor) -> Tensor:  # [H, ...] -> [G m, ...]
        padded = tensor.new_zeros(slots.query_heads, *tensor.shape[1:])
        padded[filled] = tensor[order]
        return padded

    def keys(tensor: Tensor) -> Tensor:  # [KV heads of the layout, ...] -> [G, ...]
        return torch.cat([tensor, tensor.new_zeros(slots.kv_heads - len(tensor), *tensor.shape[1:])])

    o = queries(attention.o.transpose(0, 1)).transpose(0, 1)
    sinks = None if attention.sinks is None else queries(attention.sinks)
    wider = replace(attention, q=queries(attention.q), q_bias=None, q_norm=None, o=o, sinks=sinks)
    return wider.with_projections(
        {part: attention.projection(part).changed(change) for part, change in zip(PARTS, (queries, keys, keys))}
    )


def filled_slots(layout: LayerLayout, width: int) -> list[int]:
    """Slots of the query heads in the order of the groups. width: slots of each KV head."""
    return [g * width + j for g, readers in enumerate(layout.k.readers) for j in range(len(readers))]


def with_output_bias(attention: Attention, config: dict) -> Attention:
    """Attention with an output bias of zeros if it has none, because Llama's attention_bias adds one to o as well."""
    if not _as_llama(config) or attention.o_bias is not None:
        return attention
    return replace(attention, o_bias=attention.o.new_zeros(attention.o.shape[0]))
