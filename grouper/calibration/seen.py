"""Record of the windows of a text that a refinement has seen. Later training validates on other windows, since on these
the starting model looks better than it is."""

import base64
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouper.calibration.text import digest, spread
from grouper.errors import GrouperError
from grouper.running.batch import NOT_ASKED, Batch
from grouper.schema import fitted

SKIPPED = 8  # tokens at the start of a window, which may differ if the text is cut elsewhere
ANCHOR = 24  # tokens after these, which identify the window
HEAD = 1024  # tokens that tell texts apart
MOST = 2**26  # most windows of a text
KNOWN = {"extra": "forbid"}  # for pydantic: data with other fields is of another kind


@dataclass(frozen=True)
class Seen:
    """Windows of `window` tokens, each identified by some of its tokens. They are found wherever they stand: in the
    same text cut differently, in a longer one, among others. anchors: their hashes, 8 bytes each, as base64."""

    __pydantic_config__ = KNOWN
    window: int
    anchors: str

    @classmethod
    def of(cls, windows: Tensor) -> "Seen":
        """Record of these windows [n, window] of ids, all of which were seen."""
        window = windows.shape[1]
        begin, length = _anchor(window)
        return cls(window, _as_text([int(_hashes(row[begin : begin + length].numpy())[0]) for row in windows]))

    @classmethod
    def from_data(cls, data: Any) -> "Seen | SeenExamples | SeenRows | None":
        """Record as written by to_data, of older versions too; None for anything else."""
        keys = data if isinstance(data, dict) else {}
        kind: type[Seen | SeenExamples | SeenRows]
        kind = SeenExamples if "hashes" in keys else cls if "anchors" in keys else SeenRows
        with suppress(GrouperError, ValueError):
            found = fitted(data, kind)
            return found if found.is_whole else None
        return None

    def to_data(self) -> dict:
        return asdict(self)

    @property
    def is_whole(self) -> bool:
        """Whether the record is consistent. Raises ValueError if its hashes are not base64."""
        return 0 < self.window < MOST and self.used > 0

    @property
    def used(self) -> int:
        """Number of windows that were seen."""
        return len(self._known)

    @property
    def _known(self) -> np.ndarray:
        return _hashes_in(self.anchors)

    def touches(self, given: Tensor | Batch) -> Tensor:
        """True for windows that contain a token that was seen [n]. given: consecutive windows [n, any length]."""
        tokens = Batch.of(given).ids
        begin, length = _anchor(self.window)
        found = np.flatnonzero(np.isin(_hashes(tokens.flatten().numpy(), length), self._known, kind="sort")) - begin
        edges = np.zeros(tokens.numel() + 1, np.int64)  # +1 where a seen window begins, -1 after its end
        np.add.at(edges, found.clip(0), 1)
        np.add.at(edges, (found + self.window).clip(max=tokens.numel()), -1)
        return torch.from_numpy(edges[:-1].cumsum() > 0).view(tokens.shape).any(1)


@dataclass(frozen=True)
class SeenExamples:
    """Examples of an encoder, each identified by its content without padding. hashes: 8 bytes each, as base64."""

    __pydantic_config__ = KNOWN
    hashes: str

    @classmethod
    def of(cls, batch: Batch) -> "SeenExamples":
        return cls(_as_text(_of_examples(batch)))

    @property
    def is_whole(self) -> bool:
        """Whether the record is consistent. Raises ValueError if its hashes are not base64."""
        return len(_hashes_in(self.hashes)) > 0

    def to_data(self) -> dict:
        return asdict(self)

    def touches(self, given: Tensor | Batch) -> Tensor:
        """True for examples that were seen [n]."""
        hashes = np.array(_of_examples(Batch.of(given)), np.uint64)
        return torch.from_numpy(np.isin(hashes, _hashes_in(self.hashes), kind="sort"))


def _of_examples(batch: Batch) -> list[int]:
    return [int(_unfilled(batch[i : i + 1]).digest, 16) for i in range(len(batch))]


def _unfilled(one: Batch) -> Batch:
    """An example without its padding, whose length depends on the other examples read with it."""
    inputs, labels = one.inputs, one.labels
    if one.read is not None:
        inputs = {n: given[one.read] if given.shape == one.read.shape else given for n, given in inputs.items()}
    return replace(one, inputs=inputs, labels=None if labels is None else labels[labels != NOT_ASKED])


def _as_text(hashes: list[int]) -> str:
    return base64.b64encode(np.array(hashes, np.uint64).astype("<u8").tobytes()).decode()


def _hashes_in(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<u8")


def _anchor(window: int) -> tuple[int, int]:
    """Which tokens identify a window: (position of the first, how many)."""
    length = min(ANCHOR, window)
    return min(SKIPPED, window - length), length


def _hashes(ids: np.ndarray, length: int | None = None) -> np.ndarray:
    """Hashes [n - length + 1] of `length` tokens from each position on; by default one hash of all tokens."""
    length = length or len(ids)
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    found = np.zeros(max(0, len(ids) - length + 1), np.uint64)
    for place in range(length if len(found) else 0):
        found = found * np.uint64(0xBF58476D1CE4E5B9) + mixed[place : place + len(found)]  # modulo 2**64
    return found


@dataclass(frozen=True)
class SeenRows:
    """Record of windows in the form of older versions. head: digest of the text's first tokens. windows, window: number
    and length of the windows that the whole text was cut into. used: number of windows seen, spread evenly."""

    __pydantic_config__ = KNOWN
    head: str
    windows: int
    window: int
    used: int

    @property
    def is_whole(self) -> bool:
        """Whether the record is consistent."""
        return 0 < self.used <= self.windows < MOST and 0 < self.window < MOST

    def touches(self, given: Tensor | Batch) -> Tensor:
        """True for windows [n, window] that contain a token that was seen [n]; all False for another text."""
        tokens = Batch.of(given).ids
        if digest(tokens.flatten()[:HEAD]) != self.head:
            return torch.zeros(len(tokens), dtype=torch.bool)
        rows = spread(torch.arange(self.windows), self.used)
        rows = rows[rows * self.window < tokens.numel()]
        places = (rows[:, None] * self.window + torch.arange(min(self.window, tokens.numel()))).flatten()
        seen = torch.zeros(tokens.numel(), dtype=torch.bool)
        seen[places[places < tokens.numel()]] = True
        return seen.view(tokens.shape).any(1)
