"""What merges that change a head's basis share: which query heads follow which KV head, biases as weights, norms on q and k."""

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.errors import GrouperError
from grouper.layout import LayerLayout


def readers_of(attention: Attention, kv_head: int) -> list[int]:
    """The query heads that read this KV head before regrouping."""
    queries = attention.query_heads // attention.kv_heads
    return list(range(kv_head * queries, (kv_head + 1) * queries))


def check_readers_are_sources(attention: Attention, layout: LayerLayout, merge: str) -> None:
    """A change of basis folds into a query head only if it has its own projection and its shared head is made, among others, of the head it
    read before."""
    if not layout.keeps_readers(attention.query_heads // attention.kv_heads):
        raise GrouperError(
            f"the {merge} merge needs query heads to stay with the KV head they read; for this layout use --merge mean"
        )


def augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[heads, d, D] -> [heads, d, D + 1] in float64: the bias, or zeros, as the weight of a constant input 1."""
    column = torch.zeros_like(weight[..., :1]) if bias is None else bias[..., None]
    return torch.cat([weight, column], dim=-1).double()


def split(heads: Tensor, bias: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """[heads, d, D + 1] -> weight and bias as `like` keeps them; no bias where there was none."""
    weight = heads[..., :-1].to(like)
    return weight, None if bias is None else heads[..., -1].to(like)


def energy(heads: Tensor, second: Tensor) -> Tensor:
    """heads [..., d, D + 1], second [D + 1, D + 1]. Returns [...]: E |head x|^2."""
    return (heads @ second * heads).sum((-2, -1))


def scored(attention: Attention, second: Tensor) -> tuple[Tensor, Tensor]:
    """q [H, d, D + 1] and k [G, d, D + 1], biases included, as RoPE and the scores get them: behind norms on q and k, if there are some, with
    their gains, and divided by the mean size that text (`second`) gives them."""
    q, k = augmented(attention.q, attention.q_bias), augmented(attention.k, attention.k_bias)
    if attention.qk_norm is None:
        return q, k
    return tuple(
        gain.double()[..., None] * h / sizes(h, second, attention.qk_norm)
        for h, gain in ((q, attention.q_norm), (k, attention.k_norm))
    )


def sizes(heads: Tensor, second: Tensor, qk_norm: str) -> Tensor:
    """[heads, 1, 1]: the root mean square that the norm divides each head [d, D + 1] by, over text."""
    square = energy(heads, second) / heads.shape[1]
    return (square.mean().expand(len(square)) if qk_norm == "all" else square).clamp_min(1e-30).sqrt()[:, None, None]
