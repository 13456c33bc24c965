"""DGQA (arXiv 2408.08454): KV heads stay, and at regular intervals query heads are reassigned to them, in order, in
proportion to weights from the norms of their keys.

By moving average, a KV head's weight is 0.9 n + 0.1 before; by difference it is |before - n|. Here n is its key norm
over the last step's tokens, and `before` is its key norm at the previous reassignment. The result is an ordinary export
with the last layout. As published, a head can get no query at all, and equal norms divide by zero; here every head gets
at least one, and equal norms give equal shares. The released code divides its memory by the window's length.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from grouper.allocation import allocate
from grouper.attention import Attention
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.layout import Grouping, LayerLayout
from grouper.ranks import started_ranks
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods.method import TrainingMethod
from grouper.uptraining.options import Losses
from grouper.uptraining.shared_attention import SharedAttention, key_projection


@dataclass(frozen=True)
class Redealing(TrainingMethod):
    """DGQA. every: steps between reassignments (the paper's window). difference: use |cache - n| instead of the
    average."""

    name: str = "dgqa"
    every: int = 300
    difference: bool = False
    paper = "DGQA, arXiv 2408.08454"
    losses = Losses(kl=0.0, hidden=0.0, causal=1.0)

    def check(self, exported: ExportedModel) -> None:
        super().check(exported)
        if self.every < 1:
            raise GrouperError(f"{self.name}.every={self.every}: expected at least 1 step")
        if exported.base is exported.folder:
            raise GrouperError(f"{self.name} cannot deal out the query heads of a model folded into Phi")
        if exported.architecture.family.qk_norm == "all":
            raise GrouperError(f"{self.name} cannot deal out query heads behind a norm across all K heads")
        if any(layer.q or not layer.is_shared for layer in exported.layout.layers):
            raise GrouperError(f"{self.name} needs query heads with projections of their own")
        if any(layer.k.reader_order != sorted(layer.k.reader_order) for layer in exported.layout.layers):
            raise GrouperError(
                f"{self.name} deals out query heads in their order, and {exported.folder.name} groups some that are no "
                "neighbours: export a layout of the method neighbour, or of kdgqa"
            )

    def attention(
        self, module: nn.Module, exported: ExportedModel, layer: int, merged: Attention, layout: LayerLayout
    ) -> SharedAttention:
        return RedealtAttention(module, exported.architecture, merged, layout, layer, self)


class RedealtAttention(SharedAttention):
    def __init__(
        self,
        module: nn.Module,
        architecture: Architecture,
        attention: Attention,
        layout: LayerLayout,
        layer: int,
        method: Redealing,
    ):
        super().__init__(module, architecture, attention, layout, layer)
        self.method = [method]
        self.register_buffer("before", torch.zeros(layout.k.kv_heads))
        self.register_buffer("energy", torch.zeros(layout.k.kv_heads))  # of this step's keys
        key_projection(self).register_forward_pre_hook(self._collect)

    def _collect(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Sum the squared norms of each shared head's keys, over the tokens that are trained on."""
        if not torch.is_grad_enabled():
            return
        with torch.no_grad():
            x, attention = inputs[0].float().flatten(0, -2), self.weights()  # [tokens, D]
            keys = torch.einsum("tx,gdx->tgd", x, attention.k.float())
            if attention.k_bias is not None:
                keys = keys + attention.k_bias
            self.energy += keys.square().sum((0, 2))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        method = self.method[0]
        if step % method.every == 0:
            started_ranks().add_up(self.energy)
            norms = self.energy.sqrt()
            wanted = (self.before - norms).abs() if method.difference else 0.9 * norms + 0.1 * self.before
            self.layout = dealt(self.layout, allocate(wanted.double().cpu().numpy(), sum(self.layout.k.sizes)))
            self.before.copy_(norms)
        self.energy.zero_()


def dealt(layout: LayerLayout, sizes: list[int]) -> LayerLayout:
    """Same KV heads, with the query heads in their present order divided into groups of these sizes."""
    order, readers, first = layout.k.reader_order, [], 0
    for size in sizes:
        readers.append(tuple(order[first : first + size]))
        first += size
    return replace(layout, k=Grouping(tuple(readers), layout.k.members), v=Grouping(tuple(readers), layout.v.members))
