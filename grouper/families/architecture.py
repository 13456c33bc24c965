"""Architecture of one model: the sizes of its attention, and how its tensors are named, read and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.families.shape import Shape
from grouper.families.storage import Storage, stored_tensors

if TYPE_CHECKING:  # sizes do not need torch, so that `grouper inspect` answers at once
    import torch
    from torch import Tensor

    from grouper.attention import Attention, Part, Projection
    from grouper.calibration.input_moments import InputMoments


@dataclass(frozen=True)
class Architecture(Shape):
    """Architecture of one model. Layers are numbered over all its attentions."""

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
