"""Objective of refinement: the relative error of a stream."""

import torch
from torch import Tensor


def relative(difference: Tensor, stream: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens, padding excluded, of |difference|^2 / |stream|^2. The relative error fits the next norm, which
    divides by the stream's size, and keeps the few tokens of a thousandfold size in real models from dominating."""
    if mask is not None:
        difference, stream = difference[mask], stream[mask]
    wrong, size = (torch.linalg.vector_norm(x, dim=-1).square() for x in (difference, stream))
    return (wrong / size.clamp_min(1e-12)).mean()


def size_of(tensor: Tensor) -> float:
    """Root mean square."""
    return float(tensor.detach().square().mean().sqrt())
