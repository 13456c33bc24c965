"""Export class `stock`: one KV-head count and equal groups, in the family's own class, with query heads in the order of
the groups."""

from dataclasses import replace

import torch

from grouper.attention import Attention
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.export.hf.export_class import ExportClass
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout, LayerLayout


class Stock(ExportClass):
    name = "stock"

    def refusal(
        self, checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float
    ) -> str | None:
        if architecture.needs_own_attention:
            return f"no class of transformers holds {architecture.family.model_type} models with fewer KV heads"
        return None

    def arranged(self, attention: Attention, layer: int, layout: HeadLayout, config: dict) -> Attention:
        return grouped_order(attention, layout.layers[layer])

    def read(self, exported: Checkpoint, original: Checkpoint, layer: int, layout: HeadLayout) -> Attention:
        return head_order(Architecture.of(exported.config).read(exported, layer), layout.layers[layer])

    def config(self, config: dict, architecture: Architecture, layout: HeadLayout, names: set[str]) -> dict:
        counts = {"head_dim": architecture.head_dim, "num_key_value_heads": layout.layers[0].k.kv_heads}
        if architecture.nested:
            if "text_config" in config:
                return {**config, "text_config": {**config["text_config"], **counts}}
            return {**config, **counts}
        own = "PhiForCausalLM" if architecture.as_phi else architecture.family.causal_lm
        return {**config, "architectures": [own], **counts}


def grouped_order(attention: Attention, layout: LayerLayout) -> Attention:
    """Attention with query heads reordered so that those of a group are neighbours: rows of q, columns of o. The
    function computed stays the same.

    If the layout shares query projections, q keeps its order, since the modelling file indexes it.
    """
    return _ordered(attention, layout, torch.tensor(layout.k.reader_order))


def head_order(attention: Attention, layout: LayerLayout, places: list[int] | None = None) -> Attention:
    """Inverse of `grouped_order`. places: position of each head of the groups' order (default: that order itself)."""
    order = torch.tensor(layout.k.reader_order)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order)) if places is None else torch.tensor(places)
    return _ordered(attention, layout, inverse)


def _ordered(attention: Attention, layout: LayerLayout, order: torch.Tensor) -> Attention:
    """Query heads, with all that belongs to them, in this order."""
    sinks = None if attention.sinks is None else attention.sinks[order]
    turned = replace(attention, o=attention.o[:, order], sinks=sinks)
    if layout.q is not None:
        return turned
    return turned.with_projections({"q": attention.projection("q").changed(lambda heads: heads[order])})
