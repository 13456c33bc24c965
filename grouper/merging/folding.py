"""Shared parts of the merges that change a head's basis: biases as weights, energies, norms on q and k."""

import torch
from torch import Tensor

from grouper.attention import Attention, Projection
from grouper.calibration.input_moments import InputMoments
from grouper.errors import GrouperError
from grouper.layout import LayerLayout


def check_readers_are_sources(attention: Attention, layout: LayerLayout, merge: str) -> None:
    """Raise GrouperError unless every query head keeps its own projection and reads the merge of the KV head that it
    read before. Otherwise a change of basis cannot be folded into it."""
    if not layout.keeps_readers(attention.queries_per_kv_head):
        raise GrouperError(
            f"the {merge} merge needs query heads to stay with the KV head they read; for this layout use `merge=mean`"
        )


def augmented(projection: Projection) -> Tensor:
    """Weights with the bias (or zeros) appended as the weight of a constant input 1: [heads, d, D] -> [heads, d, D + 1]
    in float64."""
    return torch.cat([projection.weight, projection.shift[..., None]], dim=-1).double()


def split(weights: Tensor, bias: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias from weights [heads, d, D + 1], in the form of `like`; no bias if there was none."""
    return weights[..., :-1].to(like), None if bias is None else weights[..., -1].to(like)


def energy(weights: Tensor, inputs: InputMoments) -> Tensor:
    """Energy E |W x|^2 of each head [...]. weights: [..., d, D + 1], real or complex."""
    return row_energy(weights, inputs).sum(-1)


def row_energy(weights: Tensor, inputs: InputMoments) -> Tensor:
    """Energy E |w x|^2 of each row [...]. weights: [..., D + 1], real or complex."""
    if weights.is_complex():
        return row_energy(weights.real, inputs) + row_energy(weights.imag, inputs)
    return (inputs.times(weights) * weights).sum(-1)


def scored(attention: Attention, inputs: InputMoments) -> tuple[Tensor, Tensor]:
    """Queries [H, d, D + 1] and keys [G, d, D + 1], biases included, as RoPE and the scores receive them. After norms
    on q and k, they include the gains and are divided by their mean size on text (`inputs`)."""
    q, k = augmented(attention.projection("q")), augmented(attention.projection("k"))
    gains = attention.gains
    if gains is None:
        return q, k
    q = gains.q.double()[..., None] * q / sizes(q, inputs, gains.kind)
    return q, gains.k.double()[..., None] * k / sizes(k, inputs, gains.kind)


def sizes(weights: Tensor, inputs: InputMoments, qk_norm: str) -> Tensor:
    """Root mean square over text by which the norm divides each head [d, D + 1]; [heads, 1, 1]."""
    square = energy(weights, inputs) / weights.shape[1]
    return (square.mean().expand(len(square)) if qk_norm == "all" else square).clamp_min(1e-30).sqrt()[:, None, None]
