"""Storage of an attention in checkpoints of a family: q, k and v in separate modules, or fused in one. Module names are
within a layer. Both classes have the same interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from grouper.errors import GrouperError

if TYPE_CHECKING:  # names do not need torch
    from torch import Tensor

    from grouper.attention import Attention, Part, Projection


@dataclass(frozen=True)
class Separate:
    """Storage with a module for each projection. shares_queries: whether q may have fewer heads than attention has
    outputs."""

    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    shares_queries: ClassVar[bool] = True

    @classmethod
    def within(cls, module: str, o: str = "o_proj") -> Separate:
        """Storage with q_proj, k_proj, v_proj and `o` in this module."""
        return cls(*(f"{module}.{name}" for name in ("q_proj", "k_proj", "v_proj", o)))

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules of q, k and v, then that of o."""
        return self.q, self.k, self.v, self.o

    def rows(self, q: int, k: int, v: int) -> dict[str, int]:
        """Number of rows of each module, given those of q, k and v."""
        return {self.q: q, self.k: k, self.v: v}

    def split(self, module: str, held: Projection, query_heads: int, kv_heads: int) -> dict[Part, Projection]:
        """Projections q, k and v among a module's rows; those that it does not hold are missing."""
        parts: dict[str, Part] = {self.q: "q", self.k: "k", self.v: "v"}
        return {parts[module]: held}

    def join(self, q: Projection, k: Projection, v: Projection) -> dict[str, Projection]:
        """Heads of each module, in its order."""
        return {self.q: q, self.k: k, self.v: v}

    def renamed(self, change: Callable[[str], str]) -> Separate:
        """Storage with renamed modules."""
        return Separate(*map(change, self.modules))


@dataclass(frozen=True)
class Fused:
    """Storage with one module for q, k and v. Its rows are all q, then all k, then all v. per_group: rows are the
    queries of KV head 0, its k, its v, then those of KV head 1 and so on (in a multi-head model q, k, v of head 0, of
    head 1, ...)."""

    qkv: str
    o: str
    per_group: bool = False
    shares_queries: ClassVar[bool] = False

    @property
    def modules(self) -> tuple[str, ...]:
        """Module of q, k and v, then that of o."""
        return self.qkv, self.o

    @property
    def q(self) -> str:
        """Module that holds q's rows."""
        return self.qkv

    @property
    def k(self) -> str:
        """Module that holds k's rows."""
        return self.qkv

    def rows(self, q: int, k: int, v: int) -> dict[str, int]:
        """Number of rows of the module, given those of q, k and v."""
        return {self.qkv: q + k + v}

    def split(self, module: str, held: Projection, query_heads: int, kv_heads: int) -> dict[Part, Projection]:
        """Projections q, k and v of the module's heads [H + 2 G, d, ...]."""
        if len(held.weight) != query_heads + 2 * kv_heads:
            heads = f"{len(held.weight)} heads of {held.weight.shape[1]}"
            raise GrouperError(f"{self.qkv} holds {heads}, config.json says otherwise")
        blocks = self._blocks(kv_heads)
        counts = [count // blocks for count in (query_heads, kv_heads, kv_heads)]

        def cut(heads: Tensor, place: int) -> Tensor:
            return heads.unflatten(0, (blocks, -1)).split(counts, dim=1)[place].flatten(0, 1)

        return {
            "q": held.changed(partial(cut, place=0)),
            "k": held.changed(partial(cut, place=1)),
            "v": held.changed(partial(cut, place=2)),
        }

    def join(self, q: Projection, k: Projection, v: Projection) -> dict[str, Projection]:
        """Heads of the module, in its order. With per_group, groups must be equal and their query heads in order."""
        import torch

        from grouper.attention import Projection

        def fuse(heads: list[Tensor]) -> Tensor:
            blocks = self._blocks(len(heads[1]))
            return torch.cat([one.unflatten(0, (blocks, -1)) for one in heads], dim=1).flatten(0, 1)

        biases = [one.bias for one in (q, k, v) if one.bias is not None]
        return {self.qkv: Projection(fuse([q.weight, k.weight, v.weight]), fuse(biases) if biases else None)}

    def renamed(self, change: Callable[[str], str]) -> Fused:
        """Storage with a renamed module."""
        return replace(self, qkv=change(self.qkv), o=change(self.o))

    def _blocks(self, kv_heads: int) -> int:
        """Number of blocks that each hold q, then k, then v."""
        return kv_heads if self.per_group else 1


Storage = Separate | Fused


def stored_tensors(
    prefix: str, storage: Storage, attention: Attention, transposed: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the projections as stored, with heads in the given order."""
    projections = (attention.projection("q"), attention.projection("k"), attention.projection("v"))
    for module, one in storage.join(*projections).items():
        weight = one.weight.flatten(0, 1)
        yield f"{prefix}{module}.weight", weight.T if transposed else weight
        if one.bias is not None:
            yield f"{prefix}{module}.bias", one.bias.flatten()
    o = attention.o.flatten(1)
    yield f"{prefix}{storage.o}.weight", o.T if transposed else o
    if attention.o_bias is not None:
        yield f"{prefix}{storage.o}.bias", attention.o_bias
