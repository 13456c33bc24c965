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
    k = augmented(attention.projection("k"))
    seen = inputs.times(k)
    plain = k.flatten(1) @ seen.flatten(1).T
    if attention.qk_norm:
        return normalised(plain, plain)
    pairs = attention.rotated_planes
    rotary = set(pairs.flatten().tolist())
    unrotated = torch.tensor([i for i in range(k.shape[1]) if i not in rotary], dtype=torch.long)
    aligned = torch.zeros_like(plain)
    if len(pairs):
        planes, seen_planes = (torch.complex(*(x[:, rows] for rows in pairs.T)) for x in (k, seen))
        inner = torch.einsum("gpx,hpx->phg", planes, seen_planes.conj())
        aligned += inner.abs().sum(0)
    if len(unrotated):
        aligned += nuclear(k[:, unrotated], seen[:, unrotated])
    return normalised(plain, aligned)


def value_similarity(attention: Attention, inputs: InputMoments) -> Similarity:
    v = augmented(attention.projection("v"))
    seen = inputs.times(v)
    return normalised(v.flatten(1) @ seen.flatten(1).T, nuclear(v, seen))


def nuclear(heads: Tensor, seen: Tensor) -> Tensor:
    """heads, and seen through the inputs' moments [G, d, D + 1]. Returns [G, G]: sums of the singular values of
    W_a C W_b^T, in float32; half of the pairs say the other half."""
    found = heads.new_zeros(len(heads), len(heads))
    flat = seen.float().flatten(0, 1)
    for a, head in enumerate(heads.float()):
        cross = (head @ flat[a * len(head) :].T).unflatten(1, (-1, len(head)))  # [d, G - a, d]
        found[a, a:] = torch.linalg.svdvals(cross.transpose(0, 1)).sum(-1).to(found)
    return torch.triu(found) + torch.triu(found, 1).T


def normalised(plain: Tensor, aligned: Tensor) -> Similarity:
    norms = plain.diagonal().clamp_min(1e-300).sqrt()
    scale = norms[:, None] * norms
    return Similarity((plain / scale).clamp(-1, 1), (aligned / scale).clamp(-1, 1))
