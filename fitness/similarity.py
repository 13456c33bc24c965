"""Cosine similarity of a layer's KV heads: as they are, and after each pair is aligned as well as attention allows.

The inner product of two heads' outputs is <W_a, W_b>_C = tr(W_a C W_b^T), where C is the inputs' second moment; the
cosine divides it by both norms. Alignment replaces the inner product by the largest that attention's symmetries allow.
A V head may be rotated by any orthogonal matrix: the nuclear norm of W_a C W_b^T. A K head with RoPE may be rotated by
an angle in every plane: the sum of the planes' absolute inner products. A K head behind a norm may not be rotated. See
"Align attention heads before merging them", arXiv 2412.20677.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.merging.folding import augmented


@dataclass(frozen=True)
class Similarity:
    """Similarities of one layer's heads. before, aligned: [G, G] cosines, 1 on the diagonal."""

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
    """Nuclear norms of W_a C W_b^T, [G, G], in float32. heads: weights [G, d, D + 1]; seen: the same times the inputs'
    second moment. Only half of the pairs are computed: the matrix is symmetric."""
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
