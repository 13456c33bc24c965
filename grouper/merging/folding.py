"""What merges that change a head's basis share: which query heads follow which KV head, norms with biases, groups in turn."""

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
        raise GrouperError(f"the {merge} merge needs query heads to stay with the KV head they read; for this layout use --merge mean")


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
