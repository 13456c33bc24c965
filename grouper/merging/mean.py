"""Mean merge: a shared head is the average of the heads behind it (GQA, arXiv 2305.13245, section 2.1; QCQA's merge)."""

from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.layout import Grouping, LayerLayout


def merge(attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None) -> Attention:
    """Average K and V heads, their biases, and the gains of a norm on K, over each group's sources; query heads too where the layout
    shares them (GQKVA).

    Every query head weighs the same: in a model that is GQA already, all KV heads have as many readers, so the plain mean does that.
    """

    def mean(heads: Tensor | None, grouping: Grouping) -> Tensor | None:  # [G, ...] -> [groups, ...]
        return None if heads is None else torch.stack([heads[list(s)].mean(0) for s in grouping.sources])

    queries = {} if layout.q is None else {n: mean(getattr(attention, n), layout.q) for n in ("q", "q_bias", "q_norm")}
    return replace(
        attention, **queries,
        k=mean(attention.k, layout.k), k_bias=mean(attention.k_bias, layout.k), k_norm=mean(attention.k_norm, layout.k),
        v=mean(attention.v, layout.v), v_bias=mean(attention.v_bias, layout.v),
    )  # fmt: skip
