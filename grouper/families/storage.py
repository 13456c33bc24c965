"""How checkpoints of a family store an attention: q, k and v in a module each, or fused in one. Names of modules are
within a layer; both classes answer the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from grouper.errors import GrouperError

if TYPE_CHECKING:  # names need no torch
    from torch import Tensor

    from grouper.attention import Attention, Part, Projection


@dataclass(frozen=True)
class Separate:
    """A module for each projection. shares_queries: whether q may have fewer heads than attention has outputs."""

    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    shares_queries: ClassVar[bool] = True

    @classmethod
    def within(cls, module: str, o: str = "o_proj") -> Separate:
        """q_proj, k_proj, v_proj and `o` in this module."""
        return cls(*(f"{module}.{name}" for name in ("q_proj", "k_proj", "v_proj", o)))

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of q, k and v, then that of o."""
        return self.q, self.k, self.v, self.o

    def rows(self, q: int, k: int, v: int) -> dict[str, int]:
        """Rows of each module, where q, k and v have these."""
        return {self.q: q, self.k: k, self.v: v}

    def split(self, module: str, held: Projection, query_heads: int, kv_heads: int) -> dict[Part, Projection]:
        """q, k and v, as far as a module holds them."""
        parts: dict[str, Part] = {self.q: "q", self.k: "k", self.v: "v"}
        return {parts[module]: held}

    def join(self, q: Projection, k: Projection, v: Projection) -> dict[str, Projection]:
        """The heads that each module holds, in its order."""
        return {self.q: q, self.k: k, self.v: v}

    def renamed(self, change: Callable[[str], str]) -> Separate:
        """The same under other names."""
        return Separate(*map(change, self.modules))


@dataclass(frozen=True)
class Fused:
    """One module for q, k and v, whose rows are all q, all k, all v. per_group: they are the queries of KV head 0, its
    k, its v, then those of KV head 1 (in a multi-head model q, k, v of head 0, of head 1, ...)."""

    qkv: str
    o: str
    per_group: bool = False
    shares_queries: ClassVar[bool] = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The module of q, k and v, then that of o."""
        return self.qkv, self.o

    @property
    def q(self) -> str:
        """The module that has q's rows."""
        return self.qkv

    @property
    def k(self) -> str:
        """The module that has k's rows."""
        return self.qkv

    def rows(self, q: int, k: int, v: int) -> dict[str, int]:
        """Rows of the module, where q, k and v have these."""
        return {self.qkv: q + k + v}

    def split(self, module: str, held: Projection, query_heads: int, kv_heads: int) -> dict[Part, Projection]:
        """q, k and v of what the module holds [H + 2 G, d, ...]."""
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
        """The heads that the module holds, in its order; per_group, groups are equal and their query heads in order."""
        import torch

        from grouper.attention import Projection

        def fuse(heads: list[Tensor]) -> Tensor:
            blocks = self._blocks(len(heads[1]))
            return torch.cat([one.unflatten(0, (blocks, -1)) for one in heads], dim=1).flatten(0, 1)

        biases = [one.bias for one in (q, k, v) if one.bias is not None]
        return {self.qkv: Projection(fuse([q.weight, k.weight, v.weight]), fuse(biases) if biases else None)}

    def renamed(self, change: Callable[[str], str]) -> Fused:
        """The same under other names."""
        return replace(self, qkv=change(self.qkv), o=change(self.o))

    def _blocks(self, kv_heads: int) -> int:
        """Blocks that each have their q, then their k, then their v."""
        return kv_heads if self.per_group else 1


Storage = Separate | Fused


def stored_tensors(
    prefix: str, storage: Storage, attention: Attention, transposed: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the projections as they are stored, heads in the order given."""
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
