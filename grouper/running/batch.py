"""Batches for calibration, refinement, evaluation and training: examples and, where they are known, right answers."""

import hashlib
from dataclasses import dataclass, replace
from typing import Union

import torch
from torch import Tensor

NOT_ASKED = -100  # marks missing labels, as in transformers
IDS = "input_ids"


@dataclass(frozen=True)
class Batch:
    """Examples for a model.

    inputs: arguments of the model by name, [n, ...] each; `attention_mask` [n, tokens] is 1 at non-padding positions.
    labels: [n] or [n, tokens], NOT_ASKED where the answer is unknown; None if all are. tokens: number of tokens per
    example. Windows of text for a decoder consist of ids alone.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None = None
    tokens: int = 1

    @classmethod
    def of(cls, given: Union[Tensor, "Batch"]) -> "Batch":
        """Batch from windows of ids [n, tokens]. A batch is returned unchanged."""
        return cls({IDS: given}, tokens=given.shape[-1]) if isinstance(given, Tensor) else given

    @property
    def windows(self) -> Tensor | None:
        """Ids [n, tokens] if the batch holds nothing else; None otherwise."""
        return self.inputs[IDS] if set(self.inputs) == {IDS} and self.labels is None else None

    @property
    def ids(self) -> Tensor:
        """Ids of the text [n, tokens]."""
        return self.inputs[IDS]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, which: slice | Tensor | list[int]) -> "Batch":
        labels = None if self.labels is None else self.labels[which]
        return replace(self, inputs={name: given[which] for name, given in self.inputs.items()}, labels=labels)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of examples, and tokens per example."""
        return len(self), self.tokens

    def numel(self) -> int:
        return len(self) * self.tokens

    def called_with(self, device: str | torch.device, dtype: torch.dtype, decodes: bool) -> dict[str, Tensor]:
        """Arguments of a call. decodes: whether a decoder is to write the labels; it then also reads them."""
        moved = {n: t.to(device, dtype if t.is_floating_point() else None) for n, t in self.inputs.items()}
        return {**moved, "labels": self.labels.to(device)} if decodes and self.labels is not None else moved

    @property
    def read(self) -> Tensor | None:
        """True at non-padding positions of the inputs [n, tokens]; None if nothing is padded."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.bool()

    @property
    def written(self) -> Tensor:
        """True at non-padding positions of the target [n, tokens] that the decoder of an encoder-decoder writes. Raises
        ValueError if the batch has no target."""
        if self.labels is None:
            raise ValueError("these examples have no target")
        return self.labels.ne(NOT_ASKED)

    @property
    def digest(self) -> str:
        """Short hash of these examples."""
        if self.windows is not None:
            return hashlib.sha256(self.windows.to(torch.int64).numpy().tobytes()).hexdigest()[:16]
        found = hashlib.sha256()
        for name, given in sorted({**self.inputs, **({} if self.labels is None else {"labels": self.labels})}.items()):
            found.update(name.encode())
            found.update(given.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def padded(rows: list[list[int]], filling: int) -> Tensor:
    """Rows padded to the longest [n, longest]. filling: padding id."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filling] * (longest - len(row)) for row in rows])
