"""What merging and fitness know of a layer's inputs: their second moment, from text or from a norm's weights."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grouper.errors import GrouperError
from grouper.outputs import write_file

TINY = 1e-12  # of what a division by the constant input's own moment may not fall below


@dataclass(frozen=True)
class InputMoments:
    """second_moment: [D + 1, D + 1] float64, E[x x^T] of what enters q, k and v, with a constant 1 appended to x (it
    multiplies biases).

    tokens: how many were averaged; 0 where the moments are a guess from weights. keys: [windows, G, G] inner products
    of the K heads' outputs, summed over each window's tokens (for key-driven allocation); None without text. queries:
    where something else enters q than k and v (attention across from a decoder to an encoder), the moments of that.
    """

    second_moment: Tensor
    tokens: int = 0
    keys: Tensor | None = None
    queries: "InputMoments | None" = None

    @property
    def of_queries(self) -> "InputMoments":
        """Of what enters q."""
        return self if self.queries is None else self.queries

    @classmethod
    def from_norm(
        cls, gain: Tensor | None, bias: Tensor | None, hidden_size: int, queries: "InputMoments | None" = None
    ) -> "InputMoments":
        """Without text: the norm's output has about unit variance times its gain g, so diag(g^2), plus b b^T for a
        LayerNorm's bias b. gain, bias: [D], or None where there is none."""
        gain = torch.ones(hidden_size) if gain is None else gain
        mean = torch.zeros(hidden_size) if bias is None else bias
        constant = torch.ones(1, dtype=torch.float64)
        return NormMoments(torch.cat([gain.double() ** 2, 0 * constant]), torch.cat([mean.double(), constant]), queries)

    def times(self, weights: Tensor) -> Tensor:
        """weights [..., D + 1], real or complex -> weights @ second_moment."""
        if weights.is_complex():
            return torch.complex(self.times(weights.real), self.times(weights.imag))
        flat = weights.reshape(-1, weights.shape[-1])  # one product: a batch of them copies the matrix for each
        return (flat @ self.second_moment).view(weights.shape)

    def centred(self) -> "InputMoments":
        """Of inputs less their mean: what is the same for all tokens is gone. The last input is the constant 1."""
        mean = self.second_moment[:, -1]
        outer = torch.outer(mean, mean) / mean[-1].clamp_min(TINY)
        return InputMoments(self.second_moment - outer, self.tokens)

    def to(self, device: str | torch.device) -> "InputMoments":
        """The second moment in float64 on that device."""
        queries = None if self.queries is None else self.queries.to(device)
        return replace(self, second_moment=self.second_moment.to(device, torch.float64), queries=queries)

    def save(self, path: Path) -> None:
        """One file, float32: 67 MB for a hidden size of 4096."""
        tensors = {"second_moment": self.second_moment.float()}
        tensors |= {} if self.keys is None else {"keys": self.keys}
        tensors |= {} if self.queries is None else {"queries": self.queries.second_moment.float()}
        facts = {"tokens": str(self.tokens), "written": str(self.of_queries.tokens)}
        write_file(path, lambda beside: save_file(tensors, beside, metadata=facts))

    @classmethod
    def load(cls, path: Path) -> "InputMoments":
        """What `save` wrote, to the bit. Raises GrouperError where the file is something else."""
        try:
            with safe_open(path, framework="pt") as file:
                named, moment = file.keys(), file.get_tensor("second_moment")
                keys = file.get_tensor("keys") if "keys" in named else None
                tokens = int(file.metadata()["tokens"])
                written = int(file.metadata().get("written", tokens))
                queries = cls(file.get_tensor("queries").double(), written) if "queries" in named else None
                return cls(moment.double(), tokens, keys, queries)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            again = "delete its folder, and it is made again"
            raise GrouperError(f"{path} holds no kept calibration ({error}): {again}") from error


class NormMoments(InputMoments):
    """diag(diagonal) + mean mean^T, never written out unless somebody asks: products cost nothing beside those with a
    whole matrix. diagonal, mean: [D + 1] float64."""

    def __init__(self, diagonal: Tensor, mean: Tensor, queries: InputMoments | None = None):
        known = {"diagonal": diagonal, "mean": mean, "tokens": 0, "keys": None, "queries": queries}
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @cached_property
    def second_moment(self) -> Tensor:
        return torch.diag(self.diagonal) + torch.outer(self.mean, self.mean)

    def times(self, weights: Tensor) -> Tensor:
        return weights * self.diagonal + (weights @ self.mean.to(weights.dtype))[..., None] * self.mean

    def centred(self) -> InputMoments:
        return NormMoments(self.diagonal, torch.zeros_like(self.mean))

    def to(self, device: str | torch.device) -> InputMoments:
        queries = None if self.queries is None else self.queries.to(device)
        return NormMoments(self.diagonal.to(device), self.mean.to(device), queries)
