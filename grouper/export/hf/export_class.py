"""Interface of an export class (stock, padded, ragged): which layouts it takes, and how it arranges, writes and
reads weights."""

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
    own_code = False  # whether a modelling file is written into the folder

    @abstractmethod
    def refusal(
        self, checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float
    ) -> str | None:
        """Reason why this layout cannot be written in this class; None if it can."""

    @abstractmethod
    def arranged(self, attention: Attention, layer: int, layout: HeadLayout, config: dict) -> Attention:
        """Merged weights of a layer, with query heads in the order that the exported class needs. config: the
        original's."""

    @abstractmethod
    def read(self, exported: Checkpoint, original: Checkpoint, layer: int, layout: HeadLayout) -> Attention:
        """Weights of a layer of an exported folder, with heads back in the layout's order: the inverse of
        `arranged`."""

    def tensors(
        self, architecture: Architecture, prefix: str, attention: Attention, layer: int
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of arranged attention."""
        return architecture.tensors(prefix, attention, layer)

    @abstractmethod
    def config(self, config: dict, architecture: Architecture, layout: HeadLayout, names: set[str]) -> dict:
        """Contents of config.json for the exported model. config: the original's, without references to code, and
        converted to Phi if the model is exported as Phi. names: names of the tensors that were written."""

    def add_files(self, folder: Path, architecture: Architecture) -> None:
        """Write further files that the folder needs; none by default."""
        return
