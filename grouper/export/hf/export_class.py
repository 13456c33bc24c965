"""What the classes of exported folders have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from grouper.attention import Attention
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout


class ExportClass(ABC):
    name: str
    own_code = False  # whether a modelling file travels along

    @abstractmethod
    def refusal(
        self, checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float
    ) -> str | None:
        """Why this layout cannot be written so, or None where it can."""

    @abstractmethod
    def arranged(self, attention: Attention, layer: int, layout: HeadLayout, config: dict) -> Attention:
        """A layer's merged weights, query heads as the exported class wants them. config: the original's."""

    @abstractmethod
    def read(self, exported: Checkpoint, original: Checkpoint, layer: int, layout: HeadLayout) -> Attention:
        """A layer of an exported folder, heads in the layout's order again: what `arranged` was given."""

    def tensors(
        self, architecture: Architecture, prefix: str, attention: Attention, layer: int
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of arranged attention."""
        return architecture.tensors(prefix, attention, layer)

    @abstractmethod
    def config(self, config: dict, architecture: Architecture, layout: HeadLayout, names: set[str]) -> dict:
        """config.json of the exported model. config: the original's, without what names code, and as Phi where it goes
        out as one. names: of the tensors that were written."""

    def add_files(self, folder: Path, architecture: Architecture) -> None:
        """Write what else the folder needs: nothing, unless a class says otherwise."""
        return
