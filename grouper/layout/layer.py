"""K and V groupings of one layer, and their JSON form."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from grouper.errors import GrouperError
from grouper.layout.grouping import Grouping, Groups
from grouper.schema import fitted


@dataclass(frozen=True)
class LayerLayout:
    """Layout of one layer: its K grouping and its V grouping, usually the same.

    q: grouping of query projections if they are shared too (GQKVA): its readers are attention outputs, its members
    original query heads. None if every query head keeps its own projection.
    """

    k: Grouping
    v: Grouping
    q: Grouping | None = None

    def __post_init__(self) -> None:
        if self.q is not None and self.q.kv_heads == sum(self.q.sizes) and self.q.readers == self.q.members:
            object.__setattr__(self, "q", None)  # every query head keeps its own

    @classmethod
    def from_labels(cls, labels: Sequence[int], queries_per_kv_head: int = 1) -> "LayerLayout":
        return cls.shared(Grouping.from_labels(labels, queries_per_kv_head))

    @classmethod
    def shared(cls, grouping: Grouping) -> "LayerLayout":
        return cls(grouping, grouping)

    @property
    def groupings(self) -> dict[Literal["q", "k", "v"], Grouping]:
        """Groupings of the projections whose heads are shared."""
        return {"k": self.k, "v": self.v} if self.q is None else {"k": self.k, "v": self.v, "q": self.q}

    @property
    def is_shared(self) -> bool:
        """Whether K and V have the same grouping."""
        return self.k.readers == self.v.readers

    @property
    def equal_groups(self) -> bool:
        """Whether K and V have the same grouping, all groups have the same size, and every query head has its own
        projection."""
        return self.is_shared and self.q is None and len(set(self.k.sizes)) == 1

    @property
    def cached_heads(self) -> int:
        """Number of K heads plus number of V heads."""
        return self.k.kv_heads + self.v.kv_heads

    def keeps_readers(self, queries_per_kv_head: int) -> bool:
        """Whether every query head keeps its own projection, and reads the KV head that its former KV head became,
        merged or not."""
        queries = range(queries_per_kv_head)
        return self.q is None and all(
            readers == tuple(s * queries_per_kv_head + q for s in members for q in queries)
            for g in (self.k, self.v)
            for readers, members in zip(g.readers, g.members)
        )

    @property
    def query_heads(self) -> int:
        """Number of query projections."""
        return sum(self.k.sizes) if self.q is None else self.q.kv_heads

    def to_data(self) -> dict[str, Any]:
        """Contents as JSON data: {"kv": ...} or {"k": ..., "v": ...}, and "q" if queries are shared."""
        parts = {"kv": self.k} if self.k == self.v else {"k": self.k, "v": self.v}
        parts |= {} if self.q is None else {"q": self.q}
        return {name: {"readers": g.readers, "sources": g.members} for name, g in parts.items()}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> "LayerLayout":
        """Layout read from the data of to_data. Raises GrouperError for anything else."""
        return fitted(data, LayerData).layout

    def check(self, name: str, query_heads: int, kv_heads: int) -> None:
        """Raise GrouperError, with the layer's name in front, if the layout does not fit a layer with these numbers of
        heads."""
        for grouping in self.groupings.values():
            if sum(grouping.sizes) != query_heads:
                raise GrouperError(f"{name} groups {sum(grouping.sizes)} query heads, the model has {query_heads}")
            members = list(chain.from_iterable(grouping.members))
            limit = query_heads if grouping is self.q else kv_heads
            if min(members) < 0 or max(members) >= limit:
                raise GrouperError(f"{name} merges a head beyond the model's {limit}")

    @property
    def kv_heads(self) -> str:
        """Number of KV heads as in the CSV: "4", or "8/4" if K and V differ."""
        return str(self.k.kv_heads) if self.k.kv_heads == self.v.kv_heads else f"{self.k.kv_heads}/{self.v.kv_heads}"


@dataclass(frozen=True)
class GroupingData:
    """Groups in JSON, where members are called sources."""

    readers: Groups
    sources: Groups

    @property
    def grouping(self) -> Grouping:
        return Grouping(self.readers, self.sources)


@dataclass(frozen=True)
class LayerData:
    """A layer in JSON: kv if K and V have the same grouping, else k and v."""

    kv: GroupingData | None = None
    k: GroupingData | None = None
    v: GroupingData | None = None
    q: GroupingData | None = None

    @property
    def layout(self) -> LayerLayout:
        k, v = self.kv or self.k, self.kv or self.v
        if k is None or v is None:
            raise GrouperError("a layer has no groups of K and V: expected kv, or k and v")
        return LayerLayout(k.grouping, v.grouping, None if self.q is None else self.q.grouping)
