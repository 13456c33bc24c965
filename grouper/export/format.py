"""Interface of an export format, and the job that it is given."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Protocol

from torch import Tensor

from grouper.attention import Merged
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.checkpoint.shards import Stored, stored
from grouper.errors import GrouperError
from grouper.export.options import ExportOptions
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.progress import Progress
from grouper.registry import Entry

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
TOLERANCE = 1e-4  # largest allowed difference of a logit


@dataclass(frozen=True)
class Job:
    """One model to write. checkpoint: the original, on the local disk. merged(layer): its new weights. around: changed
    tensors outside the layers (embedding, last norm, head), by their names in the checkpoint. compared: filled by
    `write` with the copied tensors that it read back and found identical. checksums: filled by `write` with the CRC-32
    of each tensor's bytes, by the name in the export."""

    checkpoint: Checkpoint
    layout: HeadLayout
    merged: Merged
    options: ExportOptions
    around: Mapping[str, Tensor] = field(default_factory=dict)
    compared: dict[str, Stored] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture.of(self.checkpoint.config)

    def outside(self, name: str) -> Tensor | Stored:
        """Tensor outside the layers, in its stored dtype: the changed tensor, or its location in the original's
        files."""
        return self.changed(name) if name in self.around else stored(self.checkpoint, name)

    def changed(self, name: str) -> Tensor:
        """Changed tensor outside the layers, rounded to its stored dtype."""
        return self.around[name].to(self.checkpoint.tensors[name].torch_dtype)


@dataclass(frozen=True)
class SelfTest:
    """Result of a self-test. largest_difference: larger of two, the largest difference of a logit, and that of a
    layer's addition to the stream, relative to the addition. same_tokens: number of greedy tokens that agree, of
    `tokens` generated. told: summary of the comparison. where: part that differs most, if the difference exceeds
    rounding."""

    largest_difference: float
    same_tokens: int
    tokens: int
    told: str | None = None
    where: str = ""

    @property
    def passed(self) -> bool:
        return self.largest_difference < TOLERANCE and self.same_tokens == self.tokens

    @property
    def summary(self) -> str:
        if self.told:
            return self.told
        agree = f"{self.same_tokens} of {self.tokens} greedy tokens agree"
        return f"logits differ by {self.largest_difference:.1g}, {agree}"


class SelfTestFailed(GrouperError):
    """Exported folder that does not compute the merged model."""


@dataclass(frozen=True)
class Format(Entry, ABC):
    """An entry of FORMATS. library: the Hub's name of the library that loads it. place_in_card: name in a model card of
    the folder that holds the export."""

    library: ClassVar[str]
    place_in_card: ClassVar[str] = "this folder or repository"

    @abstractmethod
    def check(self, checkpoint: Checkpoint, layout: HeadLayout, options: ExportOptions) -> None:
        """Raise GrouperError if `write` would refuse. Called before any expensive work."""

    @abstractmethod
    def write(self, job: Job, folder: Path, facts: dict, progress: Progress) -> tuple[str, str | None]:
        """Write the model into `folder`. facts: recorded in configurations that have a place for them. Returns the
        class that was written, and the reason if it is not the one that the layout allows."""

    @abstractmethod
    def verify(self, job: Job, folder: Path, export_class: str) -> SelfTest:
        """Read the export back and compare it with the merged model. export_class: the class that `write` returned.
        Raises SelfTestFailed if they differ."""

    @abstractmethod
    def weight_bytes(self, folder: Path) -> int: ...

    @abstractmethod
    def engines(self, architecture: Architecture, export_class: str) -> list[str]:
        """Engines that run the export, limited to those tested by bench/engines."""

    @abstractmethod
    def loader(self, config: dict) -> str:
        """Loader of the export: a class of transformers, or a program. config: the original's."""

    @abstractmethod
    def how_to_load(self, report: "Report", place: str) -> tuple[str, str]:
        """Instructions for loading: a line for a terminal, and Markdown for a card. place: name of the folder in
        them."""


@dataclass(frozen=True, match_args=False)  # read-only fields, like those of Exported
class Report(Protocol):
    """Facts of an export that cards and instructions use; Exported has them."""

    export_class: str
    kv_bytes_per_token: tuple[int, int]
    kv_bytes_per_source_token: tuple[int, int]
    weight_bytes: tuple[int, int]
    engines: list[str]
    loader: str
    tp: int
    padding_bytes: int


def check_same_model(checkpoint: Checkpoint, layout: HeadLayout) -> None:
    """Raise GrouperError if the layout belongs to another model, or groups K and V in a way that no attention kernel
    supports."""
    a = Architecture.of(checkpoint.config)
    theirs = (len(layout.layers), layout.query_heads, layout.original_kv_heads, layout.head_dim)
    mine = (a.layers, a.query_heads, a.kv_heads, a.head_dim)
    if mine != theirs:
        raise GrouperError(
            f"the layout is for {theirs[0]} layers of {theirs[1]} query and {theirs[2]} KV heads of {theirs[3]}, "
            f"the model has {mine[0]} of {mine[1]} and {mine[2]} of {mine[3]}: was the run made with another model?"
        )
    if layout.export_class == "none":
        alike = "grouped attention kernels need them alike"
        raise GrouperError(f"K and V are grouped differently: {alike}, so there is no export for this")
