"""`stock`: one KV-head count, equal groups: the family's own class, with query heads put in the order of the groups."""

from dataclasses import replace

import torch

from grouper.architectures import Architecture
from grouper.attention import Attention
from grouper.layout import HeadLayout, LayerLayout


def grouped_order(attention: Attention, layout: LayerLayout) -> Attention:
    """Query heads reordered so that each group's are neighbours: rows of q, columns of o. The function stays the same.

    Where the layout shares query projections, q keeps its order: the modelling file has an index into it.
    """
    order = torch.tensor([head for readers in layout.k.readers for head in readers])
    ordered = replace(attention, o=attention.o[:, order])
    if layout.q is not None:
        return ordered
    return replace(ordered, q=attention.q[order], q_bias=None if attention.q_bias is None else attention.q_bias[order])


def stock_config(config: dict, architecture: Architecture, layout: HeadLayout) -> dict:
    """config.json of the exported model: the original's with the layout's KV-head count, and without code of anybody's."""
    config = {key: value for key, value in config.items() if key != "auto_map"}
    kv_heads = layout.layers[0].k.kv_heads
    return {**config, "architectures": [architecture.family.stock], "head_dim": architecture.head_dim, "num_key_value_heads": kv_heads}
