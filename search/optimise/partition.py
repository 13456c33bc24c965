"""Partition: one grouping of one layer's KV heads as labels, with its error."""

from dataclasses import dataclass

import numpy as np

from grouper.layout import canonical_labels


@dataclass(frozen=True, eq=False)
class Partition:
    """A grouping for optimisers. labels: [G] group of each KV head, canonical. error: by the fitness."""

    labels: np.ndarray
    error: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", canonical_labels(self.labels))

    @property
    def groups(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def equal_groups(self) -> bool:
        return len(set(np.bincount(self.labels).tolist())) == 1


def best_per_count(partitions: list[Partition]) -> dict[int, Partition]:
    """The partition of lowest error for each number of groups. Ties go to the smaller labels, so that the choice is
    reproducible."""
    best: dict[int, Partition] = {}
    for partition in sorted(partitions, key=lambda p: (p.groups, p.error, p.labels.tolist())):
        best.setdefault(partition.groups, partition)
    return best
