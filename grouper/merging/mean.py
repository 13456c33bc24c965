"""Mean merge: a shared head is the average of its members (GQA, arXiv 2305.13245, section 2.1; QCQA's merge)."""

from dataclasses import dataclass

import torch

from grouper.attention import Attention, Part, Projection
from grouper.calibration.input_moments import InputMoments
from grouper.layout import Grouping, LayerLayout
from grouper.merging.base import Merge


@dataclass(frozen=True)
class Mean(Merge):
    """Average of the K and V heads of each group, with their biases and the gains of a norm on K. Query heads are
    averaged too if the layout shares them (GQKVA).

    Every KV head has the same weight, because all KV heads of a GQA model have the same number of readers.
    """

    name: str = "mean"
    paper = "GQA, arXiv 2305.13245"
    exact_in = (None, "head")

    def merge(self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None) -> Attention:
        groupings = layout.groupings.items()
        return attention.with_projections({part: averaged(attention, part, grouping) for part, grouping in groupings})


def averaged(attention: Attention, part: Part, grouping: Grouping) -> Projection:
    """Heads of a projection averaged over the members of each group: [G, ...] -> [groups, ...]."""
    sources = [list(s) for s in grouping.members]
    return attention.projection(part).changed(lambda heads: torch.stack([heads[s].mean(0) for s in sources]))


MEAN = Mean()  # works for any layout
