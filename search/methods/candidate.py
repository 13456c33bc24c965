"""One way to group one layer's KV heads, with what it costs."""

from dataclasses import dataclass

import numpy as np

from grouper.layout import LayerLayout, canonical_labels


@dataclass(frozen=True, eq=False)
class Candidate:
    """labels: [G] group of each original KV head, canonical. error: the fitness.

    layout: where labels do not tell all: K and V differ (labels are K's), query heads change their KV head, or share a projection.
    """

    labels: np.ndarray
    error: float
    layout: LayerLayout | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", canonical_labels(self.labels))

    @property
    def kv_heads(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def cached_heads(self) -> int:
        """K heads plus V heads."""
        return 2 * self.kv_heads if self.layout is None else self.layout.k.kv_heads + self.layout.v.kv_heads

    @property
    def equal_groups(self) -> bool:
        """One KV-head count for K and V, all groups alike in size, every query head its own."""
        if self.layout is None:
            return len(set(np.bincount(self.labels).tolist())) == 1
        return self.layout.is_shared and self.layout.q is None and len(set(self.layout.k.sizes)) == 1

    def layer_layout(self, queries_per_kv_head: int) -> LayerLayout:
        return self.layout or LayerLayout.from_labels(self.labels.tolist(), queries_per_kv_head)


def best_per_count(candidates: list[Candidate]) -> dict[int, Candidate]:
    """The cheapest candidate of each KV-head count; ties go to the smaller labels, so that the choice is reproducible."""
    return {cached // 2: candidate for cached, candidate in best_per_size(candidates).items()}


def best_per_size(candidates: list[Candidate]) -> dict[int, Candidate]:
    """The same by K heads plus V heads."""
    best: dict[int, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (c.cached_heads, c.error, c.labels.tolist())):
        best.setdefault(candidate.cached_heads, candidate)
    return best
