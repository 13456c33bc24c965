"""One model's attention: a family applied to a configuration.

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

if TYPE_CHECKING:  # sizes need no torch: `grouper inspect` answers at once
    import torch
    from torch import Tensor

    from grouper.attention import Attention, Part, Projection
    from grouper.calibration.input_moments import InputMoments


@dataclass(frozen=True)
class Architecture:
    """rotary_dim: of head_dim, 0 without RoPE; `unrotated` are layers that have none though the others have. windows:
    per layer, the tokens that a sliding window keeps, None for all. multiplier: of what a layer adds to the stream.
    layers: attentions, in a decoder one for each of its layers. An encoder with a decoder has those of the encoder
    first (`encoder_layers` of them), then for each layer of the decoder its own and the one across to the encoder.
    nested: whether the decoder is part of a larger model (vision and language), whose configuration holds its own as
    text_config. as_phi: whether it goes out as a Phi.
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
        """Raises GrouperError for what is not supported, by name and with the reason."""
        text = decoder_config(config)
        family = family_of(config)
        model_type = family.model_type
        try:
            query_heads, hidden, layers = (
                setting(text, key) for key in ("num_attention_heads", "hidden_size", "num_hidden_layers")
            )
            # a decoder's that is left out follows from its family: importing transformers would take seconds
            said = text if family.encodes else {"head_dim": None, **text}
            given = setting(said, "head_dim", None)
            head_dim = given or family.head_dim or hidden // query_heads
            kv_heads = query_heads if family.encodes else setting(text, "num_key_value_heads", None) or query_heads
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
            position=position, unrotated=unrotated_layers(text, layers), windows=sliding_windows(text, layers),
            multiplier=float(text.get("residual_multiplier") or 1.0),
            norms=() if text.get("do_layer_norm_before") is False else family.norm, nested=text is not config,
            as_phi=family.as_phi is not None and position == "rope" and bool(text.get(family.as_phi, True)),
            encoder_layers=encoder_layers,
        )  # fmt: skip

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Its attentions, in their order."""
        return sites_of(self.family, self.layers, self.encoder_layers)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Its layers, each by the attentions that are in it."""
        layers = groupby(self.sites, key=lambda site: (site.stack, site.layer))
        return tuple(tuple(sites) for _, sites in layers)

    def family_of(self, layer: int) -> Family:
        """How this attention is stored."""
        return self.sites[layer].family

    def name_of(self, layer: int) -> str:
        """For people: "layer 3", or "encoder 3", "decoder 3", "decoder 3 across"."""
        return self.sites[layer].name

    @cached_property
    def caches(self) -> tuple[str, ...]:
        """For each attention what K and V are kept of (see Family.cache); () where it is each token for all."""
        return tuple(site.cache for site in self.sites) if self.family.encodes else ()

    def layout(self, layers: Iterable[LayerLayout]) -> HeadLayout:
        """A layout of this model."""
        return HeadLayout(tuple(layers), self.query_heads, self.kv_heads, self.head_dim, self.caches)

    @property
    def ungrouped(self) -> HeadLayout:
        """The model as it came."""
        return self.layout([self.whole_layer] * self.layers)

    @property
    def whole_layer(self) -> LayerLayout:
        """A layer as it came."""
        return LayerLayout.from_labels(range(self.kv_heads), self.queries_per_kv_head)

    @property
    def queries_per_kv_head(self) -> int:
        return self.query_heads // self.kv_heads

    @property
    def needs_own_attention(self) -> bool:
        """Whether no class of transformers holds it with fewer KV heads than query heads."""
        return not self.family.stock and not self.as_phi

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder, or has one: then it is run whole, not layer by layer."""
        return self.family.encodes

    def uniform_counts(self, multiple_of: int = 1) -> list[int]:
        """KV-head counts below the model's own that every layer can have at once, ascending."""
        return [count for count in range(1, self.kv_heads) if count % multiple_of == 0]

    @cached_property
    def planes(self) -> Tensor:
        """[rotary_dim / 2, 2]: the two rows of head_dim that RoPE rotates together."""
        import torch

        half = self.rotary_dim // 2
        if self.family.rope == "interleaved":
            return torch.arange(self.rotary_dim).view(half, 2)
        return torch.stack([torch.arange(half), torch.arange(half) + half], dim=-1)

    def kv_bytes(self, cached_heads: list[int], bytes_per_number: float, context: int) -> int:
        """The KV cache at `context` tokens, and as many of the source where there is an encoder. cached_heads: K heads
        plus V heads of each layer; a sliding window holds no more than its tokens, an encoder none."""
        kept = [context if window is None else min(context, window) for window in self.windows]
        kept = [0 if cache == "none" else tokens for cache, tokens in zip(self.caches or ("token",) * len(kept), kept)]
        numbers = sum(count * tokens for count, tokens in zip(cached_heads, kept)) * self.head_dim
        return math.ceil(numbers * bytes_per_number)

    # Names

    def prefix(self, checkpoint: Checkpoint, layer: int) -> str:
        """The layer's place in this checkpoint, whatever it was saved with: `model.`, `transformer.`,
        `language_model.model.` or nothing."""
        site = self.sites[layer]
        name = site.family.layer
        return checkpoint.before(name.format(layer=0)) + name.format(layer=site.layer)

    def projections(self, layer: int = 0) -> list[str]:
        """The modules that hold attention weights, within a layer."""
        return list(self.family_of(layer).storage.modules)

    @property
    def norm_modules(self) -> tuple[str, ...]:
        """The norms on q and k, within a layer, where they have a gain for each head."""
        return (
            (f"{self.family.attention}.q_norm", f"{self.family.attention}.k_norm")
            if self.family.qk_norm == "all"
            else ()
        )

    def attention_tensors(self, layer: int = 0) -> set[str]:
        """The names, within a layer, of the tensors that an Attention is made of, as far as there are such."""
        modules = (*self.projections(layer), *self.norm_modules)
        sinks = set() if self.family.sinks is None else {self.family.sinks}
        return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")} | sinks

    # Reading

    def read(self, checkpoint: Checkpoint, layer: int, query_projections: int | None = None) -> Attention:
        """The layer's weights in float32. query_projections: heads of q where they are shared. Raises GrouperError for
        missing, misshapen or non-finite tensors."""
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
        norms = self._qk_norms(checkpoint, prefix)
        sinks = None if f.sinks is None else checkpoint.finite(f"{prefix}{f.sinks}")
        weights, biases = (q.weight, k.weight, v.weight, o), (q.bias, k.bias, v.bias, bias(output))
        return Attention(*weights, *biases, *norms, sinks=sinks, planes=planes, qk_norm=f.qk_norm)

    def _split(self, storage: Storage, module: str, rows: Tensor, bias: Tensor | None = None) -> dict[Part, Projection]:
        """The projections in a module's rows [heads * d, D], with its bias [heads * d]."""
        from grouper.attention import Projection

        held = Projection(self._by_head(rows, module), None if bias is None else self._by_head(bias, module))
        return storage.split(module, held, self.query_heads, self.kv_heads)

    def _by_head(self, rows: Tensor, module: str) -> Tensor:
        """[heads * d, ...] -> [heads, d, ...]"""
        if rows.shape[0] % self.head_dim:
            raise GrouperError(
                f"{module} has {rows.shape[0]} rows, no multiple of head_dim {self.head_dim}: is config.json right?"
            )
        return rows.reshape(-1, self.head_dim, *rows.shape[1:])

    def _qk_norms(self, checkpoint: Checkpoint, prefix: str) -> tuple[Tensor | None, Tensor | None]:
        """Gains of the norms on q [H, d] and k [G, d]; where all heads have the same, each gets its copy."""
        if self.family.qk_norm is None:
            return None, None
        q_gain, k_gain = (
            checkpoint.finite(f"{prefix}{self.family.attention}.{n}.weight") + self.family.norm_offset
            for n in ("q_norm", "k_norm")
        )
        per_head = (g.reshape(-1, self.head_dim) for g in (q_gain, k_gain))
        q, k = (g.expand(heads, -1) for g, heads in zip(per_head, (self.query_heads, self.kv_heads)))
        return q, k

    def key_outputs(self, output: Tensor) -> Tensor:
        """What the module that gives k gave [windows, tokens, rows] -> keys before any norm and RoPE [windows, G, d,
        tokens]."""
        storage = self.family.storage
        keys = self._split(storage, storage.k, output.flatten(0, 1).T)["k"].weight  # [G, d, windows tokens]
        return keys.unflatten(-1, output.shape[:2]).permute(2, 0, 1, 3)

    def norm(self, checkpoint: Checkpoint, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """(gain [D], bias [D]) of the norm before the projections; None where there is none, or it has no weights."""
        prefix = self.prefix(checkpoint, layer)
        names = self.norms if not self.family.parts else self.family_of(layer).norm
        return self._norm_named(checkpoint, [prefix + name for name in names])

    def _norm_named(self, checkpoint: Checkpoint, names: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Gain and bias of the first of these norms that there is."""
        for name in (n for n in names if f"{n}.weight" in checkpoint):
            gain, bias = checkpoint.finite(f"{name}.weight") + self.family.norm_offset, f"{name}.bias"
            return gain, checkpoint.finite(bias) if bias in checkpoint else None
        return None, None

    def input_moments(self, checkpoint: Checkpoint, layer: int) -> InputMoments:
        """What the norm before the projections says of their inputs, without text. Across from a decoder to an encoder,
        q has one norm and k and v another one."""
        from grouper.calibration.input_moments import AssumedInputs

        inputs = AssumedInputs.from_norm(*self.norm(checkpoint, layer), self.hidden_size)
        family = self.family_of(layer)
        if family.cache != "source":
            return inputs
        stem = checkpoint.before(family.layer.format(layer=0))
        norm = self._norm_named(checkpoint, [stem + family.source_norm] if family.source_norm else [])
        return AssumedInputs.from_norm(*norm, self.hidden_size, queries=inputs)

    def stored_dtype(self, checkpoint: Checkpoint, layer: int) -> torch.dtype:
        """What the layer's projections are kept in."""
        queries = self.prefix(checkpoint, layer) + self.family_of(layer).storage.q
        return checkpoint.tensors[f"{queries}.weight"].torch_dtype

    # Writing

    def tensors(self, prefix: str, attention: Attention, layer: int = 0) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of an attention as checkpoints of the family have them, heads in the order given."""
        f = self.family_of(layer)
        yield from stored_tensors(prefix, f.storage, attention, f.transposed)
        gains = attention.gains
        for module, gain in zip(self.norm_modules, (gains.q, gains.k) if gains else ()):
            yield f"{prefix}{module}.weight", (gain - f.norm_offset).flatten()
        if attention.sinks is not None:
            yield f"{prefix}{f.sinks}", attention.sinks
