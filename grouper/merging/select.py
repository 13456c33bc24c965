"""Select merge: a shared head is one of the heads behind it, the medoid or the first (GQA's own ablation: mean > first > random)."""

from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration import InputMoments
from grouper.layout import Grouping, LayerLayout
from grouper.merging.folding import augmented


def merge(attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None, first: bool = False) -> Attention:
    """Keep of each group the head whose outputs are nearest to the others' on calibration text: the least sum of squared distances.

    K and V choose each for themselves. first: keep the group's first head instead.
    """

    def chosen(weight: Tensor, bias: Tensor | None, grouping: Grouping) -> list[int]:
        if first:
            return [s[0] for s in grouping.sources]
        rows = augmented(weight, bias)  # [G, d, D + 1]
        seen = rows if inputs is None else rows @ inputs.second
        gram = torch.einsum("adx,bdx->ab", seen, rows)
        distance = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
        return [s[int(distance[list(s)][:, list(s)].sum(1).argmin())] for s in grouping.sources]

    parts = {"k": layout.k, "v": layout.v} | ({} if layout.q is None else {"q": layout.q})
    kept = {}
    for part, grouping in parts.items():
        weight, bias = getattr(attention, part), getattr(attention, f"{part}_bias")
        index = chosen(weight, bias, grouping)
        kept |= {part: weight[index], f"{part}_bias": None if bias is None else bias[index]}
    return replace(attention, **kept)
