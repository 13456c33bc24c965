"""WGQA (arXiv 2407.10855): a shared head is sum_s w_s * W_s over its group's heads. The w_s are trained together
with the heads W_s, starting at the mean. The sums are folded at the end, and the export contains only them.

Weights are of three kinds, as in grouper/merging/weighted.py, which fits the same by least squares without training:
scalar, one a head; column, one for each component of a head [d]; row, one for each input component [D].
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grouper.attention import Attention, Part
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.layout import Grouping, LayerLayout
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods.method import TrainingMethod
from grouper.uptraining.options import Losses
from grouper.uptraining.shared_attention import SharedAttention, holder_of

SHAPES = {"scalar": (1, 1), "column": (None, 1), "row": (1, None)}  # shape of a head's weights; None: as in the head


@dataclass(frozen=True)
class LearnedSums(TrainingMethod):
    """WGQA. kind: kind of weights, scalar, column or row."""

    name: str = "wgqa"
    kind: str = "scalar"
    paper = "WGQA, arXiv 2407.10855"
    losses = Losses(kl=0.0, hidden=0.0, causal=1.0)
    from_mean = True

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise GrouperError(f"weights of kind {self.kind!r}: expected one of {', '.join(SHAPES)}")

    def attention(
        self, module: nn.Module, exported: ExportedModel, layer: int, merged: Attention, layout: LayerLayout
    ) -> SharedAttention:
        original = exported.architecture.read(exported.base, layer)
        return SummedAttention(module, exported.architecture, merged, layout, layer, original, self.kind)


class SummedAttention(SharedAttention):
    """Shared attention whose K and V heads are weighted sums of the original's. Gains of norms are as in the export."""

    def __init__(
        self,
        module: nn.Module,
        architecture: Architecture,
        attention: Attention,
        layout: LayerLayout,
        layer: int,
        original: Attention,
        kind: str,
    ):
        super().__init__(module, architecture, attention, layout, layer)
        kv: tuple[tuple[Part, Grouping], ...] = ("k", layout.k), ("v", layout.v)
        for part, grouping in kv:
            heads = original.projection(part).weight  # [G0, d, D]
            setattr(self, part, holder_of(original.projection(part)))
            members = membership(grouping, len(heads))
            self.register_buffer(f"{part}_members", members, persistent=False)
            shape = [own if asked is None else asked for asked, own in zip(SHAPES[kind], heads.shape[1:])]
            start = (members / members.sum(1, keepdim=True)).sum(0)  # initial share of a head in its group: 1 / size
            shares = start[:, None, None].expand(-1, *shape).clone()
            self.register_parameter(f"{part}_shares", nn.Parameter(shares))  # [G0, d or 1, D or 1]

    def heads(self, part: str) -> Tensor:
        if part not in ("k", "v"):
            return super().heads(part)
        members, shares = getattr(self, f"{part}_members"), getattr(self, f"{part}_shares")
        return torch.einsum("gs,sdx->gdx", members, shares * super().heads(part))

    def bias(self, part: str) -> Tensor | None:
        """Bias [heads, d]. The weight of the constant input is the mean of the other inputs' weights."""
        bias = super().bias(part)
        if part not in ("k", "v") or bias is None:
            return bias
        members, shares = getattr(self, f"{part}_members"), getattr(self, f"{part}_shares")
        return members @ (shares.mean(-1) * bias)


def membership(grouping: Grouping, heads: int) -> Tensor:
    """Membership matrix [G, G0]: 1 if an original head is a member of a shared one."""
    members = torch.zeros(grouping.kv_heads, heads)
    for g, sources in enumerate(grouping.members):
        members[g, list(sources)] = 1.0
    return members
