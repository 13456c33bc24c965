"""What merges that change a head's basis share: biases as weights, energies, norms on q and k."""

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.errors import GrouperError
from grouper.layout import LayerLayout


def check_readers_are_sources(attention: Attention, layout: LayerLayout, merge: str) -> None:
    """A change of basis folds into a query head only if it has its own projection and its shared head is made, among
    others, of the head it read before. Raises GrouperError otherwise."""
    if not layout.keeps_readers(attention.queries_per_kv_head):
        raise GrouperError(
            f"the {merge} merge needs query heads to stay with the KV head they read; for this layout use --merge mean"
        )


def augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[heads, d, D] -> [heads, d, D + 1] in float64: the bias, or zeros, as the weight of a constant input 1."""
    column = torch.zeros_like(weight[..., :1]) if bias is None else bias[..., None]
    return torch.cat([weight, column], dim=-1).double()


def split(weights: Tensor, bias: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """[heads, d, D + 1] -> weight and bias as `like` keeps them; no bias where there was none."""
    return weights[..., :-1].to(like), None if bias is None else weights[..., -1].to(like)


def energy(weights: Tensor, second_moment: Tensor) -> Tensor:
    """weights [..., d, D + 1], second_moment [D + 1, D + 1]. Returns [...]: E |W x|^2."""
    return (weights @ second_moment * weights).sum((-2, -1))


def complex_energy(weights: Tensor, second_moment: Tensor) -> Tensor:
    """weights [..., P, D + 1], complex. Returns [...]: E |W x|^2."""
    return (weights @ second_moment.to(weights.dtype) * weights.conj()).sum((-2, -1)).real


def scored(attention: Attention, second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """q [H, d, D + 1] and k [G, d, D + 1], biases included, as RoPE and the scores get them: behind norms on q and k,
    if there are some, with their gains, and divided by the mean size that text (`second_moment`) gives them."""
    q, k = augmented(attention.q, attention.q_bias), augmented(attention.k, attention.k_bias)
    kind = attention.qk_norm
    if kind is None:
        return q, k
    q = attention.q_norm.double()[..., None] * q / sizes(q, second_moment, kind)
    return q, attention.k_norm.double()[..., None] * k / sizes(k, second_moment, kind)


def sizes(weights: Tensor, second_moment: Tensor, qk_norm: str) -> Tensor:
    """[heads, 1, 1]: the root mean square that the norm divides each head [d, D + 1] by, over text."""
    square = energy(weights, second_moment) / weights.shape[1]
    return (square.mean().expand(len(square)) if qk_norm == "all" else square).clamp_min(1e-30).sqrt()[:, None, None]
