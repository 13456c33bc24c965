"""Mean merge: a shared head is the average of the heads behind it (GQA, arXiv 2305.13245, section 2.1; QCQA's
merge)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import Grouping, LayerLayout
from grouper.merging.base import Merge


@dataclass(frozen=True)
class Mean(Merge):
    """Averages K and V heads, their biases, and the gains of a norm on K, over each group's sources; query heads too
    where the layout shares them (GQKVA).

    Every KV head weighs the same: in a model that is GQA already, all of them have as many readers.
    """

    name: str = "mean"
    paper = "GQA, arXiv 2305.13245"
    exact_in = (None, "head")

    def merge(self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None) -> Attention:
        changed = {}
        for part, grouping in (("k", layout.k), ("v", layout.v), ("q", layout.q)):
            if grouping is not None:
                changed |= {n: averaged(getattr(attention, n, None), grouping) for n in (part, f"{part}_bias")}
                if part != "v":
                    changed[f"{part}_norm"] = averaged(getattr(attention, f"{part}_norm"), grouping)
        return replace(attention, **changed)


def averaged(weights: Tensor | None, grouping: Grouping) -> Tensor | None:
    """[G, ...] -> [groups, ...]: the mean over each group's sources."""
    return None if weights is None else torch.stack([weights[list(s)].mean(0) for s in grouping.sources])
