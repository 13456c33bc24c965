"""PGQA (arXiv 2408.08454): during training, noise is subtracted from attention's outputs, so that the query heads of a
group become different. Heads and groups stay unchanged.

For each group, uniform noise [heads, tokens x d] with a zero diagonal is standardised row by row, scaled to the mean
and the deviation of the head's output over that row, and subtracted. The released code also does so at inference. An
exported model has ordinary attention, so here the noise is for training only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grouper.attention import Attention
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.layout import LayerLayout
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods.method import TrainingMethod
from grouper.uptraining.options import Losses
from grouper.uptraining.shared_attention import SharedAttention


@dataclass(frozen=True)
class Perturbed(TrainingMethod):
    """PGQA. scale: scale of the noise, 1 in the paper."""

    name: str = "pgqa"
    scale: float = 1.0
    paper = "PGQA, arXiv 2408.08454"
    losses = Losses(kl=0.0, hidden=0.0, causal=1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise GrouperError(f"{self.name}.scale={self.scale}: expected a number from 0 on")

    def attention(
        self, module: nn.Module, exported: ExportedModel, layer: int, merged: Attention, layout: LayerLayout
    ) -> SharedAttention:
        return PerturbedAttention(module, exported.architecture, merged, layout, layer, self.scale)


class PerturbedAttention(SharedAttention):
    def __init__(
        self,
        module: nn.Module,
        architecture: Architecture,
        attention: Attention,
        layout: LayerLayout,
        layer: int,
        scale: float,
    ):
        super().__init__(module, architecture, attention, layout, layer)
        self.scale = scale
        o = self.inner.get_submodule(self.family.storage.o.removeprefix(self.inside))
        o.register_forward_pre_hook(self._perturb)

    def _perturb(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Subtract noise from attention's outputs, inputs[0]: [windows, tokens, H d]."""
        if not torch.is_grad_enabled():
            return None
        by_head = inputs[0].unflatten(-1, (-1, self.architecture.head_dim))  # [windows, tokens, H, d]
        # The noise is the same when a pass is recomputed to save memory, and when a killed training resumes.
        generator = torch.Generator(by_head.device).manual_seed(1_000_003 * self.step + self.layer)
        less = torch.empty_like(by_head)
        for readers in map(list, self.layout.k.readers):
            less[:, :, readers] = noise_like(by_head[:, :, readers].detach(), generator)
        return ((by_head - self.scale * less).flatten(-2).to(inputs[0].dtype), *inputs[1:])


def noise_like(output: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in the shape of one group's outputs [windows, tokens, heads, d], the same for all windows up to mean and
    deviation."""
    rows = output.float().transpose(1, 2).flatten(2)  # [windows, heads, tokens d]
    noise = torch.rand(rows.shape[1:], generator=generator, device=rows.device)
    noise.fill_diagonal_(0)
    noise = (noise - noise.mean(-1, keepdim=True)) / noise.std(-1, keepdim=True).clamp_min(1e-12)
    scaled = noise * rows.std(-1, keepdim=True) + rows.mean(-1, keepdim=True)
    return scaled.unflatten(2, (output.shape[1], -1)).transpose(1, 2).to(output.dtype)
