"""Attention of a model, found by looking at one pass: which modules make q, k and v, which one reads the output, and
what stands between. Raises GrouperError that says which part is unlike any that can be regrouped."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grouper.errors import GrouperError
from grouper.families.derived.positions import Rotation, close, rotation_of
from grouper.families.derived.watching import Call, Pass
from grouper.families.storage import Fused, Separate, Storage

UNLIKE_KEYS = "its keys are not the output of a projection, rotated or behind a norm"
ORDERS = (False, True)  # of a fused module, by Fused.per_group


@dataclass(frozen=True)
class Found:
    """One attention. layer: path of its layer in the model. Names of modules are within the layer. q_norm, k_norm:
    norms on q and k, None if there are none. across: whether these norms span all heads. heads: query heads, KV heads
    and rows of a head. window: tokens that its mask shows; None for all. of_source:
    whether it is cross-attention."""

    layer: str
    storage: Storage
    transposed: bool
    q_norm: str | None
    k_norm: str | None
    across: bool
    rotation: Rotation
    sinks: str | None
    heads: tuple[int, int, int]
    window: int | None
    of_source: bool

    @property
    def stack(self) -> str:
        """List of layers that it is in."""
        return self.layer.rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear module within the layer, with its output [batch, tokens, rows] in this pass."""

    name: str
    output: Tensor
    entered: Tensor

    def heads(self, d: int) -> Tensor:
        """Output by head [batch, heads, tokens, d]."""
        batch, tokens = self.output.shape[:2]
        return self.output.reshape(batch, tokens, -1, d).transpose(1, 2)


def look(model: nn.Module, seen: Pass) -> list[Found]:
    """Attentions of the model, in the order of their calls in this pass."""
    if not seen.calls:
        raise GrouperError("its attention does not call the attention kernels of transformers")
    return [_Look(model, seen, call).found() for call in seen.calls]


class _Look:
    def __init__(self, model: nn.Module, seen: Pass, call: Call):
        self.model, self.seen, self.call = model, seen, call
        match = re.match(r"(.*?\.\d+)\.", f"{call.name}.")
        if match is None:
            raise GrouperError(f"its attention {call.name} is in no list of layers")
        self.layer = match.group(1)
        _, self.query_heads, _, self.d = call.query.shape
        self.kv_heads = call.key.shape[1]
        if call.value.shape[1:] != call.key.shape[1:]:
            raise GrouperError("its keys and values have heads of different numbers or sizes")
        self.of_source = call.key.shape[2] != call.query.shape[2]
        if call.query.shape[0] != call.key.shape[0]:
            raise GrouperError("it attends to other tokens than those that it is given")

    def found(self) -> Found:
        """Everything there is to see of this attention."""
        linears = self._linears()
        o = self._output_module(linears)
        storage, keys, queries = self._storage(linears, o)
        k_norm, rotation, across = self._between(keys, self.call.key)
        q_norm = self._query_norm(queries, k_norm)
        transposed = [type(self._module(name)).__name__ == "Conv1D" for name in storage.modules]
        if len(set(transposed)) > 1:
            raise GrouperError("some of its projections are transposed, others are not")
        return Found(
            self.layer, storage, transposed[0], q_norm, k_norm, across, rotation, self._sinks(),
            (self.query_heads, self.kv_heads, self.d), self._window(), self.of_source,
        )  # fmt: skip

    def _module(self, name: str) -> Any:
        return self.model.get_submodule(f"{self.layer}.{name}")

    def _linears(self) -> list[Linear]:
        """Linear modules of the layer."""
        found, start = [], f"{self.layer}."
        for name, output in self.seen.left.items():
            weight = getattr(self.model.get_submodule(name), "weight", None)
            if name.startswith(start) and isinstance(weight, Tensor) and weight.ndim == 2 and output.ndim == 3:
                found.append(Linear(name.removeprefix(start), output, self.seen.entered[name]))
        return found

    def _output_module(self, linears: list[Linear]) -> str:
        """Module that reads attention's output."""
        output = self.call.output.flatten(2)
        for one in linears:
            if one.entered.shape == output.shape and close(one.entered, output):
                return one.name
        raise GrouperError("no projection reads attention's output as it is: a gate or a norm stands between")

    def _storage(self, linears: list[Linear], o: str) -> tuple[Storage, Tensor, Tensor]:
        """Modules of q, k and v, and the keys and queries that they make [batch, heads, tokens, d]."""
        value, counts = self.call.value, (self.query_heads, self.kv_heads, self.kv_heads)
        rows = sum(counts) * self.d
        for one in linears:
            if one.output.shape[-1] == rows:
                for per_group in ORDERS:
                    q, k, v = split_heads(one.heads(self.d), self.query_heads, self.kv_heads, per_group)
                    if close(v, value):
                        return Fused(one.name, o, per_group), k, q
        narrow = [one for one in linears if one.output.shape[-1] == self.kv_heads * self.d]
        values = [one for one in narrow if close(one.heads(self.d), value)]
        if not values:
            raise GrouperError("its values are not the output of a projection: something stands between")
        beside = [n for n in linears if n.name not in (values[0].name, o) and self._is_beside(n, values[0])]
        keys = [n for n in narrow if n in beside and self._between(n.heads(self.d), self.call.key, quiet=True)]
        if not keys:
            raise GrouperError(UNLIKE_KEYS)
        return self._separate(linears, beside, keys[0], values[0], o)

    def _separate(
        self, linears: list[Linear], beside: list[Linear], k: Linear, v: Linear, o: str
    ) -> tuple[Storage, Tensor, Tensor]:
        """Modules of their own for q, k and v. beside: linear modules that read the same as v."""
        others = [n for n in linears if n.output.shape[1] == self.call.query.shape[2]] if self.of_source else beside
        queries = [n for n in others if n.name not in (k.name, o) and n.output.shape[-1] == self.query_heads * self.d]
        if len(queries) > 1:
            queries = [n for n in queries if self._between(n.heads(self.d), self.call.query, quiet=True)]
        if len(queries) != 1:
            raise GrouperError("its queries are not the output of a projection of their own")
        return Separate(queries[0].name, k.name, v.name, o), k.heads(self.d), queries[0].heads(self.d)

    def _is_beside(self, one: Linear, other: Linear) -> bool:
        return one.entered.shape == other.entered.shape and close(one.entered, other.entered)

    def _between(self, before: Tensor, after: Tensor, quiet: bool = False) -> Any:
        """Norm between a projection's heads and the kernel (None if there is none), rotation, and whether the norm
        spans all heads."""
        plain = rotation_of(before, after)
        if plain is not None:
            return None, plain, False
        for name, entered, left in self._norms(before.shape):
            for across in (False, True):
                given, gave = (self._by_head(t, before.shape, across) for t in (entered, left))
                if given is None or gave is None:
                    continue
                first = rotation_of(gave, after) if close(given, before) else None  # the norm, then RoPE
                last = rotation_of(before, given) if close(gave, after) else None  # RoPE, then the norm
                if first or last:
                    return name, first or last, across
        if quiet:
            return None
        raise GrouperError(UNLIKE_KEYS)

    def _norms(self, shape: torch.Size) -> list[tuple[str, Tensor, Tensor]]:
        """Modules of the layer that give as many numbers as they get, with those of this pass."""
        start, numbers = f"{self.layer}.", shape.numel()
        return [
            (name.removeprefix(start), self.seen.entered[name], left)
            for name, left in self.seen.left.items()
            if name.startswith(start) and left.numel() == self.seen.entered[name].numel() == numbers
            and "norm" in f"{name}{type(self.model.get_submodule(name)).__name__}".lower()
        ]  # fmt: skip

    def _by_head(self, given: Tensor, shape: torch.Size, across: bool) -> Tensor | None:
        """Numbers that enter or leave a norm, by head [batch, heads, tokens, d]."""
        batch, heads, tokens, d = shape
        if across:
            flat = given.ndim == 3 and given.shape == (batch, tokens, heads * d)
            return given.reshape(batch, tokens, heads, d).transpose(1, 2) if flat else None
        if given.shape == shape:
            return given
        return given.transpose(1, 2) if given.shape == (batch, tokens, heads, d) else None

    def _query_norm(self, queries: Tensor, k_norm: str | None) -> str | None:
        between = self._between(queries, self.call.query, quiet=True)
        if between is None:
            return self._norm_at(queries) if k_norm else None
        if (between[0] is None) != (k_norm is None):
            raise GrouperError("a norm stands on one of q and k alone")
        return between[0]

    def _norm_at(self, queries: Tensor) -> str:
        """Norm that reads these queries, where they are scaled by their place behind it."""
        for name, entered, _ in self._norms(queries.shape):
            for across in (False, True):
                given = self._by_head(entered, queries.shape, across)
                if given is not None and close(given, queries):
                    return name
        raise GrouperError("its queries are not the output of a projection, rotated or behind a norm")

    def _sinks(self) -> str | None:
        """Parameter with a score for each query head that the kernel is given."""
        given = self.call.options.get("s_aux")
        if given is None:
            return None
        for name, parameter in self.model.get_submodule(self.layer).named_parameters():
            if parameter.shape == given.shape == (self.query_heads,) and close(parameter, given):
                return name
        raise GrouperError("its softmax has scores that are no parameter for each query head")

    def _window(self) -> int | None:
        """Tokens that the last token sees, where these are not all."""
        mask = self.call.mask
        if mask is None:
            return self.call.options.get("sliding_window")
        shown = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        count = int(shown[0, 0, -1].sum())
        return None if count == shown.shape[-1] else count


def split_heads(fused: Tensor, query_heads: int, kv_heads: int, per_group: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Heads of q, k and v in those of a fused module [batch, H + 2 G, tokens, d]."""
    blocks = kv_heads if per_group else 1
    counts = [n // blocks for n in (query_heads, kv_heads, kv_heads)]
    q, k, v = (part.flatten(1, 2) for part in fused.unflatten(1, (blocks, -1)).split(counts, dim=2))
    return q, k, v
