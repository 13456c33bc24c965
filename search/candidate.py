"""One way to group one layer's KV heads, with what it costs."""

from dataclasses import dataclass

import numpy as np

from grouper.layout import canonical_labels


@dataclass(frozen=True, eq=False)
class Candidate:
    """labels: [G] group of each original KV head, canonical. error: the fitness. sizes_equal: all groups alike in size."""

    labels: np.ndarray
    error: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", canonical_labels(self.labels))

    @property
    def kv_heads(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def equal_groups(self) -> bool:
        return len(set(np.bincount(self.labels).tolist())) == 1


def best_per_count(candidates: list[Candidate]) -> dict[int, Candidate]:
    """The cheapest candidate of each KV-head count; ties go to the smaller labels, so that the choice is reproducible."""
    best: dict[int, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (c.kv_heads, c.error, c.labels.tolist())):
        best.setdefault(candidate.kv_heads, candidate)
    return best
