"""Attention of one model: a family applied to a configuration.

Sizes, and how its tensors are read, named and written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from grouper.checkpoint.checkpoint import Checkpoint
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
from grouper.families.storage import Storage, stored_tensors
from grouper.layout import HeadLayout, LayerLayout

if TYPE_CHECKING:  # sizes do not need torch, so that `grouper inspect` answers at once
    import torch
    from torch import Tensor

    from grouper.attention import Attention, Part, Projection
    from grouper.calibration.input_moments import InputMoments


@dataclass(frozen=True)
class Architecture:
    """Architecture of one model. rotary_dim: rows of a head that RoPE rotates; 0 without RoPE. unrotated: layers
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
    def of(cls, config: dict) -> Architecture:
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

    # Names

    def prefix(self, checkpoint: Checkpoint, layer: int) -> str:
        """Prefix of the layer's tensors in this checkpoint, whichever way it was saved: `model.`, `transformer.`,
        `language_model.model.` or none."""
        site = self.sites[layer]
        name = site.family.layer
        return checkpoint.before(name.format(layer=0)) + name.format(layer=site.layer)

    def projections(self, layer: int = 0) -> list[str]:
        """Modules that hold attention weights, named within a layer."""
        return list(self.family_of(layer).storage.modules)

    @property
    def norm_modules(self) -> tuple[str, ...]:
        """Norms on q and k that have a gain for each head, named within a layer."""
        return self.family.norms_of_qk if self.family.qk_norm == "all" else ()

    def attention_tensors(self, layer: int = 0) -> set[str]:
        """Names, within a layer, of the tensors that an Attention is made of. Some may be missing in the checkpoint."""
        modules = (*self.projections(layer), *self.norm_modules)
        sinks = set() if self.family.sinks is None else {self.family.sinks}
        return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")} | sinks

    # Reading

    def read(self, checkpoint: Checkpoint, layer: int, query_projections: int | None = None) -> Attention:
        """Weights of the layer in float32. query_projections: number of heads of q if they are shared. Raises
        GrouperError for missing, misshapen or non-finite tensors."""
        from grouper.attention import Attention

        prefix, f = self.prefix(checkpoint, layer), self.family_of(layer)

        def weight(module: str) -> Tensor:
            tensor = checkpoint.finite(f"{prefix}{module}.weight")
            return tensor.T if f.transposed else tensor

        def bias(module: str) -> Tensor | None:
            name = f"{prefix}{module}.bias"
            return checkpoint.finite(name) if name in checkpoint else None

        parts: dict[Part, Projection] = {}
        *holders, output = f.storage.modules
        for module in holders:
            parts |= self._split(f.storage, module, weight(module), bias(module))
        q, k, v = parts["q"], parts["k"], parts["v"]
        found = len(q.weight), len(k.weight), len(v.weight)
        if found != (query_projections or self.query_heads, self.kv_heads, self.kv_heads):
            counts = "/".join(map(str, found))
            raise GrouperError(f"{self.name_of(layer)} has {counts} q/k/v heads, config.json says otherwise")
        o = weight(output)
        o = o.reshape(o.shape[0], self.query_heads, self.head_dim)
        planes = self.planes if self.rotary_dim and layer not in self.unrotated else None
        if self.family.qk_norm is not None:
            planes = self.planes_behind_norms
        norms = self._qk_norms(checkpoint, prefix)
        sinks = None if f.sinks is None else checkpoint.finite(f"{prefix}{f.sinks}")
        weights, biases = (q.weight, k.weight, v.weight, o), (q.bias, k.bias, v.bias, bias(output))
        return Attention(*weights, *biases, *norms, sinks=sinks, planes=planes, qk_norm=f.qk_norm)

    def _split(self, storage: Storage, module: str, rows: Tensor, bias: Tensor | None = None) -> dict[Part, Projection]:
        """Projections in a module's rows [heads * d, D], with its bias [heads * d]."""
        from grouper.attention import Projection

        held = Projection(self._by_head(rows, module), None if bias is None else self._by_head(bias, module))
        return storage.split(module, held, self.query_heads, self.kv_heads)

    def _by_head(self, rows: Tensor, module: str) -> Tensor:
        """Rows split by head: [heads * d, ...] -> [heads, d, ...]."""
        if rows.shape[0] % self.head_dim:
            raise GrouperError(
                f"{module} has {rows.shape[0]} rows, no multiple of head_dim {self.head_dim}: is config.json right?"
            )
        return rows.reshape(-1, self.head_dim, *rows.shape[1:])

    def _qk_norms(self, checkpoint: Checkpoint, prefix: str) -> tuple[Tensor | None, Tensor | None]:
        """Gains of the norms on q [H, d] and k [G, d]. If all heads share the same gains, each gets a copy."""
        if self.family.qk_norm is None:
            return None, None
        if not self.family.qk_gains:
            import torch

            return torch.ones(self.query_heads, self.head_dim), torch.ones(self.kv_heads, self.head_dim)
        q_gain, k_gain = (
            checkpoint.finite(f"{prefix}{norm}.weight") + self.family.norm_offset for norm in self.family.norms_of_qk
        )
        per_head = (g.reshape(-1, self.head_dim) for g in (q_gain, k_gain))
        q, k = (g.expand(heads, -1) for g, heads in zip(per_head, (self.query_heads, self.kv_heads)))
        return q, k

    def key_outputs(self, output: Tensor) -> Tensor:
        """Keys before any norm and RoPE [windows, G, d, tokens], from the output of the module that computes k
        [windows, tokens, rows]."""
        storage = self.family.storage
        keys = self._split(storage, storage.k, output.flatten(0, 1).T)["k"].weight  # [G, d, windows tokens]
        return keys.unflatten(-1, output.shape[:2]).permute(2, 0, 1, 3)

    def norm(self, checkpoint: Checkpoint, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Gain [D] and bias [D] of the norm before the projections; None if the norm is absent or has no weights."""
        prefix = self.prefix(checkpoint, layer)
        names = self.norms if not self.family.parts else self.family_of(layer).norm
        return self._norm_named(checkpoint, [prefix + name for name in names])

    def _norm_named(self, checkpoint: Checkpoint, names: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Gain and bias of the first of these norms that exists."""
        for name in (n for n in names if f"{n}.weight" in checkpoint):
            gain, bias = checkpoint.finite(f"{name}.weight") + self.family.norm_offset, f"{name}.bias"
            return gain, checkpoint.finite(bias) if bias in checkpoint else None
        return None, None

    def input_moments(self, checkpoint: Checkpoint, layer: int) -> InputMoments:
        """Input moments that follow from the norm before the projections, without text. In cross-attention, q has one
        norm, and k and v another."""
        from grouper.calibration.input_moments import AssumedInputs

        inputs = AssumedInputs.from_norm(*self.norm(checkpoint, layer), self.hidden_size)
        family = self.family_of(layer)
        if family.cache != "source":
            return inputs
        stem = checkpoint.before(family.layer.format(layer=0))
        norm = self._norm_named(checkpoint, [stem + family.source_norm] if family.source_norm else [])
        return AssumedInputs.from_norm(*norm, self.hidden_size, queries=inputs)

    def stored_dtype(self, checkpoint: Checkpoint, layer: int) -> torch.dtype:
        """Dtype in which the layer's projections are stored."""
        queries = self.prefix(checkpoint, layer) + self.family_of(layer).storage.q
        return checkpoint.tensors[f"{queries}.weight"].torch_dtype

    # Writing

    def tensors(self, prefix: str, attention: Attention, layer: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of an attention as checkpoints of the family store them, with heads in the given order."""
        f = self.family_of(layer)
        yield from stored_tensors(prefix, f.storage, attention, f.transposed)
        gains = attention.gains
        for module, gain in zip(self.norm_modules, (gains.q, gains.k) if gains else ()):
            yield f"{prefix}{module}.weight", (gain - f.norm_offset).flatten()
        if attention.sinks is not None:
            yield f"{prefix}{f.sinks}", attention.sinks
