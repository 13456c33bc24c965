"""Select merge: a shared head is one of the heads behind it, the medoid (GQA's own ablation keeps the first; mean > first > random there)."""

from dataclasses import replace

import torch

from grouper.attention import Attention, concatenated
from grouper.calibration import InputMoments
from grouper.layout import Grouping, LayerLayout


def merge(attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None) -> Attention:
    """Keep of each group the K head, and the V head, that is nearest to the others in weights: the least sum of squared distances."""

    def medoids(weight, bias, grouping: Grouping) -> list[int]:
        rows = concatenated(weight, bias).flatten(1).double()
        distance = torch.cdist(rows, rows) ** 2  # [G, G]
        return [s[int(distance[list(s)][:, list(s)].sum(1).argmin())] for s in map(list, grouping.sources)]

    k, v = medoids(attention.k, attention.k_bias, layout.k), medoids(attention.v, attention.v_bias, layout.v)
    return replace(
        attention, k=attention.k[k], v=attention.v[v],
        k_bias=None if attention.k_bias is None else attention.k_bias[k], v_bias=None if attention.v_bias is None else attention.v_bias[v],
    )  # fmt: skip
