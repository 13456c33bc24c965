"""Interface of a method for training an exported model."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from grouper.attention import Attention
from grouper.errors import GrouperError
from grouper.layout import LayerLayout
from grouper.registry import Entry
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.options import Losses
from grouper.uptraining.shared_attention import SharedAttention


@dataclass(frozen=True)
class TrainingMethod(Entry):
    """An entry of METHODS. Fields of a subclass are its parameters.

    paper: its source. losses: default losses. from_mean: whether the method needs an export whose heads are the mean of
    the original's, without refinement.
    """

    paper: ClassVar[str]
    losses: ClassVar[Losses] = Losses()
    from_mean: ClassVar[bool] = False

    def check(self, exported: ExportedModel) -> None:
        """Raise GrouperError if the method cannot start from this export."""
        merge = exported.facts.get("merge")
        if self.from_mean and merge != "mean":
            raise GrouperError(
                f"{self.name} begins with the mean of the original's heads, and {exported.folder.name} was merged by "
                f"{merge}: export with `merge=mean` `refine=False`"
            )
        if self.from_mean and exported.base is exported.folder:
            raise GrouperError(f"{self.name} needs the original's heads, which a model folded into Phi has no more")

    def attention(
        self, module: nn.Module, exported: ExportedModel, layer: int, merged: Attention, layout: LayerLayout
    ) -> SharedAttention:
        """Replacement of the layer's attention `module` during training. merged: its current weights."""
        return SharedAttention(module, exported.architecture, merged, layout, layer)
