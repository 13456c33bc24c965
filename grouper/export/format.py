"""What a format of exports is, and what an export is asked for."""

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
TOLERANCE = 1e-4  # largest difference of a logit


@dataclass(frozen=True)
class Job:
    """One model to write. checkpoint: the original, on this disk. merged(layer): its new weights. around: of the
    tensors outside the layers (embedding, last norm, head), by their names in the checkpoint, those that changed.
    compared: filled by `write` with what it copied and found the same when it read it back. checksums: filled by it
    with the CRC-32 of each tensor's bytes, by the name that it was written under."""

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
        """A tensor outside the layers, in the type that it is stored in: as it became, or where it lies."""
        return self.changed(name) if name in self.around else stored(self.checkpoint, name)

    def changed(self, name: str) -> Tensor:
        """A tensor of `around`, rounded as it is stored."""
        return self.around[name].to(self.checkpoint.tensors[name].torch_dtype)


@dataclass(frozen=True)
class SelfTest:
    """largest_difference: of a logit, or of what a layer adds to the stream, relative to that; the larger one.
    same_tokens: greedy ones, of so many `tokens`, where some were generated. told: what was compared and how it came
    out. where: the part that differs most, if that is more than rounding."""

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
    """An exported folder that does not compute what was merged."""


@dataclass(frozen=True)
class Format(Entry, ABC):
    """An entry of FORMATS. library: as the Hub calls what loads it. place_in_card: how a card calls the
    folder that it lies in."""

    library: ClassVar[str]
    place_in_card: ClassVar[str] = "this folder or repository"

    @abstractmethod
    def check(self, checkpoint: Checkpoint, layout: HeadLayout, options: ExportOptions) -> None:
        """Raise GrouperError where `write` would refuse: before anything expensive is done."""

    @abstractmethod
    def write(self, job: Job, folder: Path, facts: dict, progress: Progress) -> tuple[str, str | None]:
        """Write the model into `folder`. facts: for configurations that have room for them. Returns the class that it
        was written as, and why it is not the one that the layout allows."""

    @abstractmethod
    def verify(self, job: Job, folder: Path, export_class: str) -> SelfTest:
        """Read back what was written and compare it with the merge. export_class: what `write` returned. Raises
        SelfTestFailed where it differs."""

    @abstractmethod
    def weight_bytes(self, folder: Path) -> int: ...

    @abstractmethod
    def engines(self, architecture: Architecture, export_class: str) -> list[str]:
        """What runs it: what bench/engines found, nothing more."""

    @abstractmethod
    def loader(self, config: dict) -> str:
        """What loads it: a class of transformers, a program. config: the original's."""

    @abstractmethod
    def how_to_load(self, report: "Report", place: str) -> tuple[str, str]:
        """(a line for a terminal, Markdown for a card). place: the folder, as it is to be called."""


@dataclass(frozen=True, match_args=False)  # fields that are read, as an Exported's are
class Report(Protocol):
    """What an Exported says, as far as cards and instructions go."""

    export_class: str
    kv_bytes_per_token: tuple[int, int]
    kv_bytes_per_source_token: tuple[int, int]
    weight_bytes: tuple[int, int]
    engines: list[str]
    loader: str


def check_same_model(checkpoint: Checkpoint, layout: HeadLayout) -> None:
    """Raise GrouperError where the layout is another model's, or no kernel's."""
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
