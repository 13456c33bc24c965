"""Procrustes merge: rotate heads onto one another, then average ("Align attention heads before merging them", arXiv 2412.20677).

A V head may be rotated by any orthogonal matrix, undone in W_O; a K head with RoPE by one angle per frequency plane, undone in W_Q; a K head
without RoPE, or its unrotated part, by any orthogonal matrix. Rotations and mean are iterated (generalised Procrustes). Averaging shrinks a
head: each query head's q and o are scaled so that what it sees has its own old head's norm again. As in the paper, heads are compared by
their outputs on calibration text, here through the inputs' second moment.

A norm between projection and RoPE leaves K no rotation (its gains differ from row to row) and q no scale: there K is the plain mean.
"""

from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging.folding import augmented, check_readers_are_sources, readers_of, split

ITERATIONS = 100
GAIN = 1e-9  # stop when the aligned norm grows by less than this share


def merge(attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None) -> Attention:
    """Raises GrouperError where query heads would read heads that theirs are not merged into."""
    check_readers_are_sources(attention, layout, "procrustes")
    k, v = augmented(attention.k, attention.k_bias), augmented(attention.v, attention.v_bias)
    second = torch.eye(k.shape[-1], dtype=k.dtype) if inputs is None else inputs.second
    values, vectors = torch.linalg.eigh(second)
    root = vectors * values.clamp_min(0).sqrt()  # |head @ root| is the norm of its outputs
    q, o = augmented(attention.q, attention.q_bias), attention.o.double().clone()
    d = attention.head_dim
    rotary = torch.arange(0) if attention.planes is None else attention.planes.flatten()
    unrotated = torch.tensor([i for i in range(d) if i not in set(rotary.tolist())], dtype=torch.long)

    merged_k = []
    for sources in layout.k.sources:
        if attention.qk_norm:
            merged_k.append(k[list(sources)].mean(0))
            continue
        heads = k[list(sources)]  # [S, d, D + 1]
        shared = torch.empty_like(heads[0])
        if len(rotary):
            a, b = attention.planes.T
            seen = heads @ root
            turns = _align_planes(torch.complex(seen[:, a], seen[:, b]))
            complex_shared = (turns[..., None] * torch.complex(heads[:, a], heads[:, b])).mean(0)
            shared[a], shared[b] = complex_shared.real, complex_shared.imag
        if len(unrotated):
            rotations = _align(heads[:, unrotated] @ root)
            shared[unrotated] = (rotations @ heads[:, unrotated]).mean(0)
        for i, source in enumerate(sources):
            scale = (heads[i] @ root).norm() / (shared @ root).norm().clamp_min(1e-30)
            for reader in readers_of(attention, source):
                if len(rotary):
                    turned = torch.complex(q[reader, a], q[reader, b]) * turns[i][:, None]
                    q[reader, a], q[reader, b] = turned.real, turned.imag
                if len(unrotated):
                    q[reader, unrotated] = rotations[i] @ q[reader, unrotated]
                q[reader] *= scale
        merged_k.append(shared)

    merged_v = []
    for sources in layout.v.sources:
        heads = v[list(sources)]
        rotations = _align(heads @ root)
        shared = (rotations @ heads).mean(0)
        for i, source in enumerate(sources):
            scale = (heads[i] @ root).norm() / (shared @ root).norm().clamp_min(1e-30)
            for reader in readers_of(attention, source):
                o[:, reader] = o[:, reader] @ rotations[i].T * scale
        merged_v.append(shared)

    new_k, k_bias = split(torch.stack(merged_k), attention.k_bias, attention.k)
    new_v, v_bias = split(torch.stack(merged_v), attention.v_bias, attention.v)
    new_q, q_bias = split(q, attention.q_bias, attention.q)
    k_norm = (
        None if attention.k_norm is None else torch.stack([attention.k_norm[list(s)].mean(0) for s in layout.k.sources])
    )
    return replace(
        attention, q=new_q, q_bias=q_bias, k=new_k, k_bias=k_bias, k_norm=k_norm, v=new_v, v_bias=v_bias, o=o.to(attention.o)
    )  # fmt: skip


def _align(heads: Tensor) -> Tensor:
    """heads [S, d, X]. Returns orthogonal rotations [S, d, d] that bring them together."""
    rotations = torch.eye(heads.shape[1], dtype=heads.dtype, device=heads.device).repeat(len(heads), 1, 1)
    shared, norm = heads[0], 0.0  # the first head leads the first round
    for _ in range(ITERATIONS):
        u, _, vh = torch.linalg.svd(shared @ heads.transpose(1, 2))  # argmax over R of <R head, shared>
        rotations = u @ vh
        shared = (rotations @ heads).mean(0)
        if shared.norm() <= norm * (1 + GAIN):
            break
        norm = shared.norm()
    return rotations


def _align_planes(heads: Tensor) -> Tensor:
    """heads [S, planes, X], complex. Returns unit factors [S, planes] that bring them together."""
    shared, norm = heads[0], 0.0
    for _ in range(ITERATIONS):
        inner = (shared * heads.conj()).sum(-1)  # [S, planes]
        turns = torch.where(inner.abs() > 0, inner / inner.abs().clamp_min(1e-300), torch.ones_like(inner))
        shared = (turns[..., None] * heads).mean(0)
        if shared.norm() <= norm * (1 + GAIN):
            break
        norm = shared.norm()
    return turns
