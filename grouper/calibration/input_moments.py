"""Second moments of the inputs of an attention, as merging and fitness use them: measured on text, or assumed from the
weights of a norm."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from grouper.errors import GrouperError
from grouper.tensor_files import load_tensors, save_tensors

TINY = 1e-12  # lower bound of the constant input's own moment in divisions


class InputMoments(ABC):
    """Second moment of the inputs of q, k and v. A constant 1 is appended to the inputs, as the multiplier of biases.

    second_moment: [D + 1, D + 1] float64, E[x x^T]. queries: moments of the inputs of q, if they differ from
    those of k and v (cross-attention from a decoder to an encoder).
    """

    second_moment: Tensor
    queries: "InputMoments | None"

    @property
    def of_queries(self) -> "InputMoments":
        """Moments of the inputs of q."""
        return self if self.queries is None else self.queries

    @abstractmethod
    def times(self, weights: Tensor) -> Tensor:
        """Product weights @ second_moment. weights: [..., D + 1], real or complex."""

    @abstractmethod
    def centred(self) -> "InputMoments":
        """Moments of the inputs minus their mean, so that the part common to all tokens is removed."""

    @abstractmethod
    def to(self, device: str | torch.device) -> "InputMoments":
        """Copy in float64 on that device."""


@dataclass(frozen=True)
class MeasuredInputs(InputMoments):
    """Moments measured on text.

    tokens: number of tokens averaged over. keys: [windows, G, G] inner products of the K heads' outputs, summed over
    the tokens of each window (for key-driven allocation); None for inputs that k does not read.
    """

    second_moment: Tensor
    tokens: int
    keys: Tensor | None = None
    queries: InputMoments | None = None

    def times(self, weights: Tensor) -> Tensor:
        if weights.is_complex():
            return torch.complex(self.times(weights.real), self.times(weights.imag))
        flat = weights.reshape(-1, weights.shape[-1])  # one product: batched, the matrix would be copied for each
        return (flat @ self.second_moment).view(weights.shape)

    def centred(self) -> "MeasuredInputs":
        mean = self.second_moment[:, -1]
        outer = torch.outer(mean, mean) / mean[-1].clamp_min(TINY)
        return MeasuredInputs(self.second_moment - outer, self.tokens)

    def to(self, device: str | torch.device) -> "MeasuredInputs":
        queries = None if self.queries is None else self.queries.to(device)
        return replace(self, second_moment=self.second_moment.to(device, torch.float64), queries=queries)

    def save(self, path: Path) -> None:
        """Write one file, in float32 (67 MB for a hidden size of 4096)."""
        tensors, written = {"second_moment": self.second_moment.float()}, self.tokens
        if self.keys is not None:
            tensors["keys"] = self.keys
        if isinstance(self.queries, MeasuredInputs):
            tensors["queries"], written = self.queries.second_moment.float(), self.queries.tokens
        save_tensors(path, tensors, _Tokens(self.tokens, written))

    @classmethod
    def load(cls, path: Path) -> "MeasuredInputs":
        """Read a file that `save` wrote, bit for bit. Raises GrouperError if the file is something else."""
        cure = "delete its folder, and it is made again"
        tensors, facts = load_tensors(path, _Tokens, cure)
        moments = [tensors[name] for name in ("second_moment", "queries") if name in tensors]
        if "second_moment" not in tensors or any(m.ndim != 2 or m.shape[0] != m.shape[1] for m in moments):
            raise GrouperError(f"{path} holds no kept calibration: {cure}")
        written = facts.tokens if facts.written is None else facts.written
        queries = cls(tensors["queries"].double(), written) if "queries" in tensors else None
        return cls(tensors["second_moment"].double(), facts.tokens, tensors.get("keys"), queries)


@dataclass(frozen=True)
class _Tokens:
    """Number of tokens that moments were measured on: those that k and v read, and those that q reads if it reads
    another text."""

    tokens: int
    written: int | None = None


@dataclass(frozen=True)
class AssumedInputs(InputMoments):
    """Moments assumed without text: diag(diagonal) + mean mean^T. The matrix is formed only on request, since products
    without it are much cheaper. diagonal, mean: [D + 1] float64."""

    diagonal: Tensor
    mean: Tensor
    queries: InputMoments | None = None

    @classmethod
    def from_norm(
        cls, gain: Tensor | None, bias: Tensor | None, hidden_size: int, queries: InputMoments | None = None
    ) -> "AssumedInputs":
        """Moments for the output of a norm: about unit variance times its gain g, so diag(g^2), plus b b^T for the bias
        b of a LayerNorm. gain, bias: [D], or None if absent."""
        gain = torch.ones(hidden_size) if gain is None else gain
        mean = torch.zeros(hidden_size) if bias is None else bias
        constant = torch.ones(1, dtype=torch.float64)
        return cls(torch.cat([gain.double() ** 2, 0 * constant]), torch.cat([mean.double(), constant]), queries)

    @cached_property
    def second_moment(self) -> Tensor:  # type: ignore[override]
        return torch.diag(self.diagonal) + torch.outer(self.mean, self.mean)

    def times(self, weights: Tensor) -> Tensor:
        return weights * self.diagonal + (weights @ self.mean.to(weights.dtype))[..., None] * self.mean

    def centred(self) -> "AssumedInputs":
        return AssumedInputs(self.diagonal, torch.zeros_like(self.mean))

    def to(self, device: str | torch.device) -> "AssumedInputs":
        queries = None if self.queries is None else self.queries.to(device)
        return AssumedInputs(self.diagonal.to(device), self.mean.to(device), queries)
