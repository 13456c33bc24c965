r"""Which query heads read which KV head, and which original heads that KV head is merged from.

MHA          GQA, equal      GQA, any sizes
q q q q      q q  q q        q q q  q
| | | |       \|   |/         \|/   |
k k k k       k   k            k    k
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from numbers import Integral
from typing import Any, Literal

import numpy as np

from grouper.errors import GrouperError
from grouper.kv_cache import bytes_for
from grouper.parsing import shown
from grouper.schema import document, fitted

Groups = tuple[tuple[int, ...], ...]
FORMAT = 1
CACHES = ("token", "source", "none")


def canonical_labels(labels: np.ndarray) -> np.ndarray:
    """Rename groups in order of their smallest member, so that equal partitions are equal arrays.

    labels: [..., heads], any integers. Returns int16 of the same shape, each row a restricted growth string: 0, then at
    most one more than the largest so far.

    >>> canonical_labels(np.array([7, 3, 7, 0])).tolist()
    [0, 1, 0, 2]
    """
    labels = np.asarray(labels)
    first = (labels[..., :, None] == labels[..., None, :]).argmax(-1)  # [..., heads] smallest member of my group
    rank = np.cumsum(first == np.arange(labels.shape[-1]), axis=-1) - 1
    return np.take_along_axis(rank, first, axis=-1).astype(np.int16)


def groups_of(labels: Sequence[int]) -> Groups:
    """The partition behind one label vector, groups by smallest member.

    >>> groups_of([7, 3, 7])
    ((0, 2), (1,))
    """
    canonical = canonical_labels(np.asarray(labels))
    return tuple(tuple(np.flatnonzero(canonical == g).tolist()) for g in range(int(canonical.max()) + 1))


@dataclass(frozen=True)
class Grouping:
    """The K heads (or the V heads) of one layer after regrouping.

    readers[g]: the query heads that read KV head g; together a partition of the layer's query heads.
    sources[g]: the original KV heads that KV head g is merged from.
    Kept in canonical order (groups by smallest reader, heads ascending), so that equal groupings are equal and hash
    equal. Raises GrouperError where readers are no partition.
    """

    readers: Groups
    sources: Groups

    def __post_init__(self) -> None:
        if len(self.readers) != len(self.sources) or not self.readers:
            raise GrouperError(
                f"a grouping needs as many readers as sources, got {len(self.readers)} and {len(self.sources)}"
            )
        if not all(self.readers) or not all(self.sources):
            raise GrouperError("a KV head without readers or without sources: every group needs at least one of both")
        pairs = sorted(
            (tuple(sorted(map(int, r))), tuple(sorted(map(int, s)))) for r, s in zip(self.readers, self.sources)
        )
        read = sorted(chain.from_iterable(r for r, _ in pairs))
        if read != list(range(len(read))):
            raise GrouperError(f"readers must hold every query head from 0 on exactly once, got {shown(read)}")
        object.__setattr__(self, "readers", tuple(r for r, _ in pairs))
        object.__setattr__(self, "sources", tuple(s for _, s in pairs))

    @classmethod
    def from_labels(cls, labels: Sequence[int], queries_per_kv_head: int = 1) -> "Grouping":
        """labels[j]: the group of original KV head j, which `queries_per_kv_head` query heads read."""
        n, sources = queries_per_kv_head, groups_of(labels)
        readers = tuple(tuple(q for head in group for q in range(head * n, (head + 1) * n)) for group in sources)
        return cls(readers, sources)

    @property
    def kv_heads(self) -> int:
        return len(self.readers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Query heads per KV head."""
        return tuple(map(len, self.readers))

    @cached_property
    def group_of(self) -> np.ndarray:
        """[query_heads]: the KV head that each query head reads."""
        labels = np.empty(sum(self.sizes), np.int64)
        for g, readers in enumerate(self.readers):
            labels[list(readers)] = g
        return labels

    @cached_property
    def labels(self) -> np.ndarray:
        """[original KV heads], canonical: the new KV head that each goes into, where each goes into exactly one."""
        labels = np.empty(sum(map(len, self.sources)), np.int64)
        for g, sources in enumerate(self.sources):
            labels[list(sources)] = g
        return canonical_labels(labels)

    @property
    def reader_order(self) -> list[int]:
        """The query heads, one group after the other: the order in which stock classes want them."""
        return [head for readers in self.readers for head in readers]


@dataclass(frozen=True)
class LayerLayout:
    """One layer: its K grouping and its V grouping, mostly the same one.

    q: where query projections are shared too (GQKVA): its readers are attention outputs, its sources original query
    heads; None where every query head keeps its own.
    """

    k: Grouping
    v: Grouping
    q: Grouping | None = None

    def __post_init__(self) -> None:
        if self.q is not None and self.q.kv_heads == sum(self.q.sizes) and self.q.readers == self.q.sources:
            object.__setattr__(self, "q", None)  # each its own

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
        """Whether K and V are grouped alike."""
        return self.k.readers == self.v.readers

    @property
    def equal_groups(self) -> bool:
        """K and V grouped alike, all groups of one size, every query head with a projection of its own."""
        return self.is_shared and self.q is None and len(set(self.k.sizes)) == 1

    @property
    def cached_heads(self) -> int:
        """K heads plus V heads."""
        return self.k.kv_heads + self.v.kv_heads

    def keeps_readers(self, queries_per_kv_head: int) -> bool:
        """Whether every query head, with a projection of its own, goes on reading the KV head that it read, merged or
        not."""
        queries = range(queries_per_kv_head)
        return self.q is None and all(
            readers == tuple(s * queries_per_kv_head + q for s in sources for q in queries)
            for g in (self.k, self.v)
            for readers, sources in zip(g.readers, g.sources)
        )

    @property
    def query_heads(self) -> int:
        """Query projections that are kept."""
        return sum(self.k.sizes) if self.q is None else self.q.kv_heads

    def to_data(self) -> dict[str, Any]:
        """For JSON: {"kv": ...} or {"k": ..., "v": ...}, and "q" where queries are shared."""
        parts = {"kv": self.k} if self.k == self.v else {"k": self.k, "v": self.v}
        parts |= {} if self.q is None else {"q": self.q}
        return {name: {"readers": g.readers, "sources": g.sources} for name, g in parts.items()}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> "LayerLayout":
        """What to_data wrote. Raises GrouperError for anything else."""
        return fitted(data, _LayerData).layout

    def check(self, name: str, query_heads: int, kv_heads: int) -> None:
        """Raise GrouperError, with the layer's name in front, where it is no layer of a model with so many heads."""
        for grouping in self.groupings.values():
            if sum(grouping.sizes) != query_heads:
                raise GrouperError(f"{name} groups {sum(grouping.sizes)} query heads, the model has {query_heads}")
            sources = list(chain.from_iterable(grouping.sources))
            limit = query_heads if grouping is self.q else kv_heads
            if min(sources) < 0 or max(sources) >= limit:
                raise GrouperError(f"{name} merges a head beyond the model's {limit}")

    @property
    def kv_heads(self) -> str:
        """As in the CSV: "4", or "8/4" where K and V differ."""
        return str(self.k.kv_heads) if self.k.kv_heads == self.v.kv_heads else f"{self.k.kv_heads}/{self.v.kv_heads}"


@dataclass(frozen=True)
class HeadLayout:
    """The KV heads of a whole model. Immutable; equal layouts compare and hash equal.

    layers: one for each attention of the model. caches: what an engine keeps each one's K and V of: "token", "source"
    (tokens of the source that a decoder attends to), "none" (an encoder); () where it is tokens for all.
    """

    layers: tuple[LayerLayout, ...]
    query_heads: int
    original_kv_heads: int
    head_dim: int
    caches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "caches", tuple(self.caches))
        if self.caches and (len(self.caches) != len(self.layers) or not set(self.caches) <= set(CACHES)):
            raise GrouperError(f"a layout of caches {self.caches}: expected one of {', '.join(CACHES)} for each layer")
        sizes = {
            "query_heads": self.query_heads,
            "original_kv_heads": self.original_kv_heads,
            "head_dim": self.head_dim,
        }
        if wrong := [f"{n} {v!r}" for n, v in sizes.items() if not isinstance(v, Integral) or v is True or v < 1]:
            raise GrouperError(f"a layout with {', '.join(wrong)}: expected whole numbers from 1 on")
        if not self.layers or self.query_heads % self.original_kv_heads:
            had = f"{len(self.layers)} layers, {self.query_heads} query heads over {self.original_kv_heads} KV heads"
            raise GrouperError(
                f"a layout of {had}: expected at least one layer, and as many query heads for each KV head"
            )
        for index, layer in enumerate(self.layers):
            layer.check(f"layer {index}", self.query_heads, self.original_kv_heads)

    @classmethod
    def from_labels(cls, labels: Iterable[Sequence[int]], query_heads: int, head_dim: int) -> "HeadLayout":
        """labels[layer][j]: the group of original KV head j in that layer."""
        rows = [list(map(int, row)) for row in labels]
        kv_heads = len(rows[0])
        layers = tuple(LayerLayout.from_labels(row, query_heads // kv_heads) for row in rows)
        return cls(layers, query_heads, kv_heads, head_dim)

    @classmethod
    def ungrouped(cls, layers: int, query_heads: int, kv_heads: int, head_dim: int) -> "HeadLayout":
        """The model as it came: every KV head alone."""
        return cls.from_labels([range(kv_heads)] * layers, query_heads, head_dim)

    @property
    def queries_per_kv_head(self) -> int:
        """Query heads that read a KV head of the model that came in."""
        return self.query_heads // self.original_kv_heads

    @property
    def kv_heads(self) -> tuple[str, ...]:
        """Per layer, as in the CSV."""
        return tuple(layer.kv_heads for layer in self.layers)

    @property
    def cached_heads(self) -> int:
        """K heads plus V heads, over all layers."""
        return sum(layer.cached_heads for layer in self.layers)

    def _of_cache(self, *kinds: str) -> list[LayerLayout]:
        """The layers whose K and V are kept of one of these."""
        return [
            layer for layer, cache in zip(self.layers, self.caches or ("token",) * len(self.layers)) if cache in kinds
        ]

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> int:
        """Bytes that one token adds to the KV cache."""
        return bytes_for(sum(layer.cached_heads for layer in self._of_cache("token")) * self.head_dim, dtype)

    def kv_bytes_per_source_token(self, dtype: str = "bfloat16") -> int:
        """Bytes that one token of the source adds to what a decoder keeps of it."""
        return bytes_for(sum(layer.cached_heads for layer in self._of_cache("source")) * self.head_dim, dtype)

    @property
    def is_cached(self) -> bool:
        """Whether an engine keeps any K and V: an encoder alone keeps none."""
        return bool(self._of_cache("token", "source"))

    @property
    def kv_ratio(self) -> float:
        """KV bytes relative to the model that came in, at as many tokens of a source as others; of an encoder alone,
        which keeps none, `weight_ratio`."""
        kept = self._of_cache("token", "source") or self.layers
        return sum(layer.cached_heads for layer in kept) / (2 * self.original_kv_heads * len(kept))

    @property
    def groups_encoder(self) -> bool:
        """Whether something is grouped that no cache is kept of."""
        return any(layer.cached_heads < 2 * self.original_kv_heads for layer in self._of_cache("none"))

    @property
    def whole(self) -> "HeadLayout":
        """The model as it came."""
        alone = LayerLayout.from_labels(range(self.original_kv_heads), self.queries_per_kv_head)
        return replace(self, layers=(alone,) * len(self.layers))

    @property
    def weight_ratio(self) -> float:
        """Weights of K and V relative to the model that came in."""
        return self.cached_heads / (2 * self.original_kv_heads * len(self.layers))

    @property
    def only_mean(self) -> bool:
        """Whether only averaging makes sense of it: query heads change their KV head or share a projection."""
        return not all(layer.keeps_readers(self.queries_per_kv_head) for layer in self.layers)

    @property
    def export_class(self) -> str:
        """What the layout by itself allows; grouper.export.classes says what a model's family makes of it.

        stock: one KV-head count, equal groups. padded: one count, any sizes. ragged: counts differ, queries are shared,
        or there is an encoder, whose classes know nothing else. none: K and V differ.
        """
        if not all(layer.is_shared for layer in self.layers):
            return "none"
        if self.caches or any(layer.q for layer in self.layers) or len({layer.k.kv_heads for layer in self.layers}) > 1:
            return "ragged"
        return "stock" if len({size for layer in self.layers for size in layer.k.sizes}) == 1 else "padded"

    def to_json(self) -> str:
        """One line a layer, so that two layouts diff well."""
        facts = {
            "format": FORMAT, "query_heads": self.query_heads, "original_kv_heads": self.original_kv_heads,
            "head_dim": self.head_dim, **({"caches": self.caches} if self.caches else {}),
        }  # fmt: skip
        layers = ",\n  ".join(json.dumps(layer.to_data()) for layer in self.layers)
        return json.dumps(facts)[:-1] + f', "layers": [\n  {layers}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> "HeadLayout":
        """Raises GrouperError where the text is not a layout."""
        return cls.from_data(document(text))

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> "HeadLayout":
        """A layout from its JSON. Raises GrouperError for anything else."""
        facts = fitted(data, _LayoutData)
        if facts.format != FORMAT:
            raise GrouperError(f"it is a layout of format {facts.format}: this Grouper reads format {FORMAT}")
        layers = tuple(layer.layout for layer in facts.layers)
        return cls(layers, facts.query_heads, facts.original_kv_heads, facts.head_dim, facts.caches)


@dataclass(frozen=True)
class _LayerData:
    """A layer in JSON: kv where K and V are grouped alike, else k and v."""

    kv: Grouping | None = None
    k: Grouping | None = None
    v: Grouping | None = None
    q: Grouping | None = None

    @property
    def layout(self) -> LayerLayout:
        k, v = self.kv or self.k, self.kv or self.v
        if k is None or v is None:
            raise GrouperError("a layer has no groups of K and V: expected kv, or k and v")
        return LayerLayout(k, v, self.q)


@dataclass(frozen=True)
class _LayoutData:
    """A layout in JSON."""

    format: int
    layers: tuple[_LayerData, ...]
    query_heads: int
    original_kv_heads: int
    head_dim: int
    caches: tuple[str, ...] = ()
