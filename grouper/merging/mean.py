"""Mean merge: a shared head is the average of the heads behind it (GQA, arXiv 2305.13245, section 2.1; QCQA's
merge)."""

from dataclasses import dataclass

import torch

from grouper.attention import Attention, Part, Projection
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
        groupings = layout.groupings.items()
        return attention.with_projections({part: averaged(attention, part, grouping) for part, grouping in groupings})


def averaged(attention: Attention, part: Part, grouping: Grouping) -> Projection:
    """Heads of a projection [G, ...] -> [groups, ...]: the mean over each group's sources."""
    sources = [list(s) for s in grouping.members]
    return attention.projection(part).changed(lambda heads: torch.stack([heads[s].mean(0) for s in sources]))


MEAN = Mean()  # what any layout can be merged by
