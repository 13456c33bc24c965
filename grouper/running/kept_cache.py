"""Attention modules that read keys and values through a simulated low-bit cache.

Every attention class of transformers passes its keys, after RoPE, and its values to a cache, and computes with the
returned tensors. The cache here stores nothing and returns both rounded, so that each window is measured as if every
token had been generated from the cache of those before it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from grouper.cache_types import CacheType
from grouper.errors import GrouperError

NAMES = ("cache", "past_key_values", "past_key_value", "layer_past")  # argument names in transformers releases


class RoundingCache:
    """Stand-in for a cache of transformers. asked: whether attention has used it."""

    is_compileable = False

    def __init__(self, kind: CacheType):
        self.kind, self.asked = kind, False

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [examples, heads, tokens, d] as read back. For a type with exact newest tokens, rounded and
        exact ones are concatenated to [examples, heads, 2 tokens, d]."""
        self.asked = True
        rounded = self.kind.rounded(keys, "k"), self.kind.rounded(values, "v")
        if not self.kind.residual:
            return rounded
        return torch.cat([rounded[0], keys], -2), torch.cat([rounded[1], values], -2)

    def get_seq_length(self, *_: Any) -> int:
        """Number of tokens before these, always 0."""
        return 0


@contextmanager
def kept_as(attention: nn.Module, kind: CacheType | None) -> Iterator[None]:
    """Make the attention read keys and values from a cache of this type until the block ends; unchanged if the type is
    None. Raises GrouperError for a class that does not use a cache."""
    if kind is None or kind.rounding is None:
        yield
        return
    name = next((n for n in signature(attention.forward).parameters if n in NAMES), None)
    if name is None:
        raise GrouperError(f"{type(attention).__name__} has no KV cache, so `kv_cache` cannot be measured with it")
    cache = RoundingCache(kind)

    def hook(_module: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        named = {**named, name: cache}
        if kind.residual:
            tokens, device = _stream(inputs, named).shape[1], _stream(inputs, named).device
            named["attention_mask"] = of_both(named.get("attention_mask"), tokens, kind.residual, device)
        return inputs, named

    handle = attention.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if not cache.asked:
        raise GrouperError(f"{type(attention).__name__} asks no KV cache, so `kv_cache` cannot be measured with it")


def _stream(inputs: tuple, named: dict[str, Any]) -> Tensor:
    return inputs[0] if inputs else named["hidden_states"]


def of_both(mask: Tensor | None, tokens: int, residual: int, device: torch.device) -> Tensor:
    """Mask [.., tokens, 2 tokens] over rounded keys followed by exact ones. Each token sees rounded keys of the full
    runs of `residual` tokens before its own run, and exact keys of the others. mask: mask over the keys [.., tokens, >=
    tokens], True or 0 where they are visible; None is causal."""
    place = torch.arange(tokens, device=device)
    if mask is None:
        mask = (place[:, None] >= place)[None, None]
    mask = mask[..., :tokens]
    old = place[None, :] < place[:, None] // residual * residual  # [tokens, tokens]
    if mask.dtype == torch.bool:
        return torch.cat([mask & old, mask & ~old], -1)
    never = torch.finfo(mask.dtype).min
    return torch.cat([mask.masked_fill(~old, never), mask.masked_fill(old, never)], -1)
