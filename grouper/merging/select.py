"""Select merge: a shared head is one of its members (GQA's own ablation: mean > first > random)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grouper.attention import Attention, Part
from grouper.calibration.input_moments import InputMoments
from grouper.layout import Groups, LayerLayout
from grouper.merging.base import Merge
from grouper.merging.folding import augmented


@dataclass(frozen=True)
class Select(Merge):
    """Medoid of each group: the member nearest to the others, with the least sum of 1 - cosine of outputs on
    calibration text (of weights if no text is given). With `first`, the group's first member instead.

    If K and V have the same grouping, a single member gives both K and V, and is nearest by the mean of K's and V's
    distances. Distances compare directions, because by squared differences the weakest head would be nearest to all.
    """

    name: str = "select"
    first: bool = False
    paper = "GQA, arXiv 2305.13245"
    exact_in = (None, "head")

    def merge(self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None) -> Attention:
        k, v = (distances(attention, part, inputs) for part in ("k", "v"))
        if layout.k.members == layout.v.members:
            k = v = (k + v) / 2
        kept: dict[Part, list[int]] = {"k": self.chosen(k, layout.k.members), "v": self.chosen(v, layout.v.members)}
        if layout.q is not None:
            kept["q"] = self.chosen(distances(attention, "q", inputs), layout.q.members)
        return attention.with_projections(
            {part: attention.projection(part).taken(heads) for part, heads in kept.items()}
        )

    def chosen(self, distance: Tensor, sources: Groups) -> list[int]:
        """Member that each group keeps."""
        return [s[0 if self.first else int(distance[list(s)][:, list(s)].sum(1).argmin())] for s in sources]


def distances(attention: Attention, part: Part, inputs: InputMoments | None) -> Tensor:
    """Distances [G, G]: 1 - cosine of the q, k or v heads' outputs, or of their weights if there are no inputs."""
    rows = augmented(attention.projection(part))  # [G, d, D + 1]
    gram = torch.einsum("adx,bdx->ab", rows if inputs is None else rows @ inputs.second_moment, rows)
    size = gram.diagonal().sqrt().clamp_min(1e-150)
    return 1 - gram / size[:, None] / size
