"""How alike a layer's KV heads are, as they stand, and with each pair aligned as well as attention allows.

Cosines of what heads give: <W_a, W_b>_C = tr(W_a C W_b^T) over both norms, where C is the inputs' second moment. A V
head may be rotated by any orthogonal matrix, so aligned it is the nuclear norm of W_a C W_b^T; a K head with RoPE by an
angle in every plane, so aligned it is the sum of the planes' absolute inner products; a K head behind a norm by
nothing. See "Align attention heads before merging them", arXiv 2412.20677.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.merging.folding import augmented


@dataclass(frozen=True)
class Similarity:
    """before, aligned: [G, G] cosines, 1 on the diagonal."""

    before: Tensor
    aligned: Tensor


def key_similarity(attention: Attention, inputs: InputMoments) -> Similarity:
    cross = cross_products(augmented(attention.k, attention.k_bias), inputs)
    plain = inner(cross)
    if attention.qk_norm:
        return normalised(plain, plain)
    rotary = torch.arange(0) if attention.planes is None else attention.planes.flatten()
    unrotated = torch.tensor([i for i in range(cross.shape[-1]) if i not in set(rotary.tolist())], dtype=torch.long)
    aligned = torch.zeros_like(plain)
    if len(rotary):
        a, b = attention.planes.T
        real, imaginary = cross[..., a, a] + cross[..., b, b], cross[..., b, a] - cross[..., a, b]
        aligned += torch.hypot(real, imaginary).sum(-1)
    if len(unrotated):
        aligned += nuclear(cross[..., unrotated[:, None], unrotated])
    return normalised(plain, aligned)


def value_similarity(attention: Attention, inputs: InputMoments) -> Similarity:
    cross = cross_products(augmented(attention.v, attention.v_bias), inputs)
    return normalised(inner(cross), nuclear(cross))


def cross_products(weights: Tensor, inputs: InputMoments) -> Tensor:
    """weights [G, d, D + 1]. Returns [G, G, d, d]: W_a C W_b^T of all pairs of heads."""
    heads, d, width = weights.shape
    seen = inputs.times(weights).reshape(heads * d, width)
    return (seen @ weights.reshape(heads * d, width).T).view(heads, d, heads, d).permute(0, 2, 1, 3)


def inner(cross: Tensor) -> Tensor:
    """[G, G, d, d] -> [G, G]: traces."""
    return cross.diagonal(dim1=-2, dim2=-1).sum(-1)


def nuclear(cross: Tensor) -> Tensor:
    """[G, G, d, d] -> [G, G]: sums of singular values, half of which say the other half."""
    heads = len(cross)
    rows, columns = torch.triu_indices(heads, heads)
    found = cross.new_zeros(heads, heads)
    found[rows, columns] = torch.linalg.svdvals(cross[rows, columns].float()).sum(-1).to(found)
    return torch.triu(found) + torch.triu(found, 1).T


def normalised(plain: Tensor, aligned: Tensor) -> Similarity:
    norms = plain.diagonal().clamp_min(1e-300).sqrt()
    scale = norms[:, None] * norms
    return Similarity(plain / scale, (aligned / scale).clamp(-1, 1))
