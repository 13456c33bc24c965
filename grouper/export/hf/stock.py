"""`stock`: one KV-head count, equal groups: the family's own class, with query heads put in the order of the groups."""

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
    """Query heads reordered so that each group's are neighbours: rows of q, columns of o. The function stays the same.

    Where the layout shares query projections, q keeps its order: the modelling file has an index into it.
    """
    return _ordered(attention, layout, torch.tensor(layout.k.reader_order))


def head_order(attention: Attention, layout: LayerLayout, places: list[int] | None = None) -> Attention:
    """What `grouped_order` was given. places: where each head of the groups' order lies; in that order unless given."""
    order = torch.tensor(layout.k.reader_order)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order)) if places is None else torch.tensor(places)
    return _ordered(attention, layout, inverse)


def _ordered(attention: Attention, layout: LayerLayout, order: torch.Tensor) -> Attention:
    """Query heads with all that belongs to them, in this order."""
    sinks = None if attention.sinks is None else attention.sinks[order]
    turned = replace(attention, o=attention.o[:, order], sinks=sinks)
    if layout.q is not None:
        return turned
    return turned.with_projections({"q": attention.projection("q").changed(lambda heads: heads[order])})
