"""Sizes of one model's attention: a family applied to a configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Self

from grouper.errors import GrouperError
from grouper.families.configuration import (
    completed,
    decoder_config,
    family_of,
    rotary_dim,
    setting,
    sliding_windows,
    unrotated_layers,
)
from grouper.families.family import Family
from grouper.families.sites import Place, Site, sites_of
from grouper.layout import HeadLayout, LayerLayout

if TYPE_CHECKING:  # sizes do not need torch, so that `grouper inspect` answers at once
    from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Sizes of one model's attention. rotary_dim: rows of a head that RoPE rotates; 0 without RoPE. unrotated: layers
    without RoPE in a model that has it. windows: per layer, the tokens that a sliding window keeps; None for all.
    multiplier: factor on each layer's addition to the stream.

    layers: number of attentions. A decoder has one per layer. An encoder-decoder has those of the encoder first
    (`encoder_layers` of them), then for each layer of the decoder its self-attention and its cross-attention. nested:
    whether the decoder is part of a larger model (vision and language), whose configuration holds the decoder's as
    text_config. as_phi: whether the model is exported as a Phi.
    """

    family: Family
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    rotary_dim: int
    context: int  # tokens
    position: str = "rope"
    unrotated: frozenset[int] = frozenset()
    windows: tuple[int | None, ...] = ()
    multiplier: float = 1.0
    norms: tuple[str, ...] = ()
    nested: bool = False
    as_phi: bool = False
    encoder_layers: int = 0

    @classmethod
    def of(cls, config: dict) -> Self:
        """Architecture of a configuration. Raises GrouperError for an unsupported model, with its name and the
        reason."""
        text = decoder_config(config)
        family = family_of(config)
        if family.proved:
            nested, text = text is not config, completed(text)
        else:
            nested = text is not config
        model_type = family.model_type
        try:
            query_heads, hidden, layers = (
                setting(text, key) for key in ("num_attention_heads", "hidden_size", "num_hidden_layers")
            )
            # a decoder's missing value follows from its family; importing transformers would take seconds
            said = text if family.encodes else {"head_dim": None, **text}
            given = setting(said, "head_dim", None)
            head_dim = given or family.head_dim or hidden // query_heads
            grouped = not family.encodes or family.proved
            kv_heads = (setting(text, "num_key_value_heads", None) if grouped else None) or query_heads
            if model_type == "falcon":
                one = 1 if text.get("multi_query", True) else query_heads
                kv_heads = kv_heads if text.get("new_decoder_architecture") else one
        except (TypeError, ZeroDivisionError) as error:
            raise GrouperError(f"config.json has sizes that are no numbers ({error})") from error
        if not all(isinstance(n, int) and n > 0 for n in (query_heads, kv_heads, head_dim, hidden, layers)):
            sizes = f"{query_heads} heads, {kv_heads} KV heads, {layers} layers"
            raise GrouperError(f"config.json has sizes that are no positive numbers: {sizes}")
        if query_heads % kv_heads:
            raise GrouperError(
                f"{query_heads} query heads are no multiple of {kv_heads} KV heads: is config.json right?"
            )
        encoder_layers = layers if family.parts else 0
        if family.parts:
            layers += 2 * (setting(text, "decoder_layers", None) or layers)
        position = "alibi" if text.get("alibi") else family.position
        return cls(
            family, layers, query_heads, kv_heads, head_dim, hidden,
            rotary_dim=rotary_dim(text, family, head_dim) if position == "rope" else 0,
            context=setting(text, "max_position_embeddings", None) or 0,
            position=position, unrotated=unrotated_layers(text, layers, family.unrotated),
            windows=sliding_windows(text, layers, family.windowed),
            multiplier=float(text.get("residual_multiplier") or 1.0),
            norms=() if text.get("do_layer_norm_before") is False else family.norm, nested=nested,
            as_phi=family.as_phi is not None and position == "rope" and bool(text.get(family.as_phi, True)),
            encoder_layers=encoder_layers,
        )  # fmt: skip

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Attentions of the model, in order."""
        return sites_of(self.family, self.layers, self.encoder_layers)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Layers of the model, each given by the attentions in it."""
        layers = groupby(self.sites, key=lambda site: (site.stack, site.layer))
        return tuple(tuple(sites) for _, sites in layers)

    def family_of(self, layer: int) -> Family:
        """Family that describes how this attention is stored."""
        return self.sites[layer].family

    def name_of(self, layer: int) -> str:
        """Name for people: "layer 3", or "encoder 3", "decoder 3", "decoder 3 across"."""
        return self.sites[layer].name

    @cached_property
    def caches(self) -> tuple[str, ...]:
        """For each attention, the tokens that its KV cache covers (see Family.cache); () if all tokens for every
        attention."""
        return tuple(site.cache for site in self.sites) if self.family.encodes else ()

    def layout(self, layers: Iterable[LayerLayout]) -> HeadLayout:
        """Layout of this model with these layers."""
        return HeadLayout(tuple(layers), self.query_heads, self.kv_heads, self.head_dim, self.caches)

    @property
    def ungrouped(self) -> HeadLayout:
        """Layout of the original model: no heads are merged."""
        return self.layout([self.whole_layer] * self.layers)

    @property
    def whole_layer(self) -> LayerLayout:
        """Layout of one layer of the original model."""
        return LayerLayout.from_labels(range(self.kv_heads), self.queries_per_kv_head)

    @property
    def queries_per_kv_head(self) -> int:
        return self.query_heads // self.kv_heads

    @property
    def needs_own_attention(self) -> bool:
        """Whether no class of transformers supports this model with fewer KV heads than query heads."""
        return not self.family.stock and not self.as_phi

    @property
    def replaced(self) -> bool:
        """Whether a ragged export replaces attention by one of our own, because the family's class computes it without
        a kernel that can be exchanged."""
        return self.needs_own_attention and not self.family.encodes and not self.family.proved

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder or has one. Such a model is run whole, not layer by layer."""
        return self.family.encodes

    def uniform_counts(self, multiple_of: int = 1) -> list[int]:
        """KV-head counts below the model's own that all layers can have at once, ascending."""
        return [count for count in range(1, self.kv_heads) if count % multiple_of == 0]

    @cached_property
    def planes(self) -> Tensor:
        """Planes [rotary_dim / 2, 2]: the two rows of head_dim that RoPE rotates together."""
        import torch

        half = self.rotary_dim // 2
        if self.family.rope == "interleaved":
            return torch.arange(self.rotary_dim).view(half, 2)
        return torch.stack([torch.arange(half), torch.arange(half) + half], dim=-1)

    @cached_property
    def planes_behind_norms(self) -> Tensor:
        """Planes [head_dim / 2, 2] where norms stand on q and k. They leave rows without RoPE no more freedom than
        rotated ones: signs, or real factors. Such rows therefore count as planes, too."""
        import torch

        rest = torch.arange(self.rotary_dim, self.head_dim)
        return torch.cat([self.planes, rest[: len(rest) // 2 * 2].view(2, -1).T])

    def kv_bytes(self, cached_heads: list[int], bytes_per_number: float, context: int) -> int:
        """Bytes of KV cache at `context` tokens, and for an encoder-decoder as many source tokens. cached_heads: K
        heads plus V heads of each layer. A sliding window holds at most its own tokens, an encoder none."""
        kept = [context if window is None else min(context, window) for window in self.windows]
        kept = [0 if cache == "none" else tokens for cache, tokens in zip(self.caches or ("token",) * len(kept), kept)]
        numbers = sum(count * tokens for count, tokens in zip(cached_heads, kept)) * self.head_dim
        return math.ceil(numbers * bytes_per_number)
