"""`stock`: one KV-head count, equal groups: the family's own class, with query heads put in the order of the groups."""

from dataclasses import replace

import torch

from grouper.attention import Attention
from grouper.layout import HeadLayout, LayerLayout
from grouper.model.architecture import Architecture


def grouped_order(attention: Attention, layout: LayerLayout) -> Attention:
    """Query heads reordered so that each group's are neighbours: rows of q, columns of o. The function stays the same.

    Where the layout shares query projections, q keeps its order: the modelling file has an index into it.
    """
    order = torch.tensor([head for readers in layout.k.readers for head in readers])
    ordered = replace(attention, o=attention.o[:, order])
    if layout.q is not None:
        return ordered
    parts = {n: getattr(attention, n) for n in ("q", "q_bias", "q_norm")}
    return replace(ordered, **{n: t[order] for n, t in parts.items() if t is not None})


def stock_config(config: dict, architecture: Architecture, layout: HeadLayout) -> dict:
    """config.json of the exported model: the original's with the layout's KV-head count, and without code of anybody's."""
    heads = {"head_dim": architecture.head_dim, "num_key_value_heads": layout.layers[0].k.kv_heads}
    config = {key: value for key, value in config.items() if key != "auto_map"}
    if architecture.nested:
        return (
            {**config, "text_config": {**config["text_config"], **heads}}
            if "text_config" in config
            else {**config, **heads}
        )
    own = "PhiForCausalLM" if architecture.as_phi else architecture.family.causal_lm
    return {**config, "architectures": [own], **heads}
