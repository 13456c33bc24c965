"""What merging and fitness need to know of a layer's inputs: their second moment, from text or from the norm's weight alone."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputMoments:
    """second: [D + 1, D + 1] float64, E[x x^T] of what enters q/k/v, with a constant 1 appended to x (it multiplies biases).

    tokens: how many were averaged; 0 where the moments are a guess from weights.
    """

    second: Tensor
    tokens: int = 0

    @classmethod
    def from_norm(cls, gain: Tensor | None, bias: Tensor | None, hidden_size: int) -> "InputMoments":
        """Without text: the norm's output has about unit variance times its gain g: diag(g^2), plus b b^T for a LayerNorm's bias b."""
        gain = torch.ones(hidden_size) if gain is None else gain
        second = torch.diag(torch.cat([gain.double() ** 2, torch.ones(1, dtype=torch.float64)]))
        if bias is not None:
            mean = torch.cat([bias.double(), torch.ones(1, dtype=torch.float64)])
            second = torch.diag(torch.cat([gain.double() ** 2, torch.zeros(1, dtype=torch.float64)])) + torch.outer(mean, mean)
        return cls(second)
