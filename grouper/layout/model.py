"""Layout of a whole model's KV heads: the groupings of its layers, their sizes in bytes, and the JSON form."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from grouper.errors import GrouperError
from grouper.kv_cache import bytes_for
from grouper.layout.layer import LayerData, LayerLayout
from grouper.schema import document, fitted

FORMAT = 1
CACHES = ("token", "source", "none")


@dataclass(frozen=True)
class HeadLayout:
    """KV heads of a whole model. Immutable; equal layouts compare and hash equal.

    layers: one entry per attention of the model. caches: per attention, the tokens whose K and V an engine caches:
    "token", "source" (source tokens that a decoder attends to) or "none" (an encoder); () means "token" for all.
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
        """Layout from labels. labels[layer][j]: group of original KV head j in that layer."""
        rows = [list(map(int, row)) for row in labels]
        kv_heads = len(rows[0])
        layers = tuple(LayerLayout.from_labels(row, query_heads // kv_heads) for row in rows)
        return cls(layers, query_heads, kv_heads, head_dim)

    @classmethod
    def ungrouped(cls, layers: int, query_heads: int, kv_heads: int, head_dim: int) -> "HeadLayout":
        """Layout of an original model: every KV head in a group of its own."""
        return cls.from_labels([range(kv_heads)] * layers, query_heads, head_dim)

    @property
    def queries_per_kv_head(self) -> int:
        """Number of query heads per KV head of the original model."""
        return self.query_heads // self.original_kv_heads

    @property
    def kv_heads(self) -> tuple[str, ...]:
        """Number of KV heads per layer, as in the CSV."""
        return tuple(layer.kv_heads for layer in self.layers)

    @property
    def cached_heads(self) -> int:
        """Number of K heads plus V heads, over all layers."""
        return sum(layer.cached_heads for layer in self.layers)

    def _of_cache(self, *kinds: str) -> list[LayerLayout]:
        """Layers whose cache covers one of these kinds of tokens."""
        return [
            layer for layer, cache in zip(self.layers, self.caches or ("token",) * len(self.layers)) if cache in kinds
        ]

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> int:
        """Bytes that one token adds to the KV cache."""
        return bytes_for(sum(layer.cached_heads for layer in self._of_cache("token")) * self.head_dim, dtype)

    def kv_bytes_per_source_token(self, dtype: str = "bfloat16") -> int:
        """Bytes that one source token adds to a decoder's cache for cross-attention."""
        return bytes_for(sum(layer.cached_heads for layer in self._of_cache("source")) * self.head_dim, dtype)

    @property
    def is_cached(self) -> bool:
        """Whether an engine caches any K and V. It does not for an encoder alone."""
        return bool(self._of_cache("token", "source"))

    @property
    def kv_ratio(self) -> float:
        """KV bytes relative to the original model, for equal numbers of source and target tokens. For an encoder alone,
        which has no cache, `weight_ratio`."""
        kept = self._of_cache("token", "source") or self.layers
        return sum(layer.cached_heads for layer in kept) / (2 * self.original_kv_heads * len(kept))

    @property
    def groups_encoder(self) -> bool:
        """Whether heads are merged in a layer without a cache."""
        return any(layer.cached_heads < 2 * self.original_kv_heads for layer in self._of_cache("none"))

    @property
    def whole(self) -> "HeadLayout":
        """Layout of the original model."""
        alone = LayerLayout.from_labels(range(self.original_kv_heads), self.queries_per_kv_head)
        return replace(self, layers=(alone,) * len(self.layers))

    @property
    def weight_ratio(self) -> float:
        """Weights of K and V relative to the original model."""
        return self.cached_heads / (2 * self.original_kv_heads * len(self.layers))

    @property
    def only_mean(self) -> bool:
        """Whether only a mean merge is possible, because query heads change their KV head or share a projection."""
        return not all(layer.keeps_readers(self.queries_per_kv_head) for layer in self.layers)

    @property
    def export_class(self) -> str:
        """Export class that the layout itself allows. grouper.export.classes decides, given the model's family.

        stock: one KV-head count, equal groups. padded: one count, any sizes. ragged: counts differ, queries are shared,
        or there is an encoder, whose classes know nothing else. none: K and V differ.
        """
        if not all(layer.is_shared for layer in self.layers):
            return "none"
        if self.caches or any(layer.q for layer in self.layers) or len({layer.k.kv_heads for layer in self.layers}) > 1:
            return "ragged"
        return "stock" if len({size for layer in self.layers for size in layer.k.sizes}) == 1 else "padded"

    def to_json(self) -> str:
        """Contents as JSON with one line per layer, so that two layouts diff well."""
        facts = {
            "format": FORMAT, "query_heads": self.query_heads, "original_kv_heads": self.original_kv_heads,
            "head_dim": self.head_dim, **({"caches": self.caches} if self.caches else {}),
        }  # fmt: skip
        layers = ",\n  ".join(json.dumps(layer.to_data()) for layer in self.layers)
        return json.dumps(facts)[:-1] + f', "layers": [\n  {layers}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> "HeadLayout":
        """Layout read from JSON text. Raises GrouperError if the text is not a layout."""
        return cls.from_data(document(text))

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> "HeadLayout":
        """Layout read from JSON data. Raises GrouperError for anything else."""
        facts = fitted(data, LayoutData)
        if facts.format != FORMAT:
            raise GrouperError(f"it is a layout of format {facts.format}: this Grouper reads format {FORMAT}")
        layers = tuple(layer.layout for layer in facts.layers)
        return cls(layers, facts.query_heads, facts.original_kv_heads, facts.head_dim, facts.caches)


@dataclass(frozen=True)
class LayoutData:
    """A layout in JSON."""

    format: int
    layers: tuple[LayerData, ...]
    query_heads: int
    original_kv_heads: int
    head_dim: int
    caches: tuple[str, ...] = ()
