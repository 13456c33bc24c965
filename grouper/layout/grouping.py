"""Grouping of the K or V heads of one layer: the query heads that read each KV head, and the original heads that it is
merged from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from grouper.errors import GrouperError
from grouper.parsing import shown

Groups = tuple[tuple[int, ...], ...]


def canonical_labels(labels: np.ndarray) -> np.ndarray:
    """Rename groups in order of their smallest member, so that equal partitions give equal arrays.

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
    """Partition given by a label vector, with groups ordered by smallest member.

    >>> groups_of([7, 3, 7])
    ((0, 2), (1,))
    """
    canonical = canonical_labels(np.asarray(labels))
    return tuple(tuple(np.flatnonzero(canonical == g).tolist()) for g in range(int(canonical.max()) + 1))


@dataclass(frozen=True)
class Grouping:
    """K heads (or V heads) of one layer after regrouping.

    readers[g]: query heads that read KV head g; together they partition the layer's query heads. members[g]: original
    KV heads that KV head g is merged from.

    Both are kept in canonical order (groups by smallest reader, heads ascending), so that equal groupings compare and
    hash equal. Raises GrouperError if readers are not a partition.
    """

    readers: Groups
    members: Groups

    def __post_init__(self) -> None:
        if len(self.readers) != len(self.members) or not self.readers:
            raise GrouperError(
                f"a grouping needs as many readers as sources, got {len(self.readers)} and {len(self.members)}"
            )
        if not all(self.readers) or not all(self.members):
            raise GrouperError("a KV head without readers or without sources: every group needs at least one of both")
        pairs = sorted(
            (tuple(sorted(map(int, r))), tuple(sorted(map(int, s)))) for r, s in zip(self.readers, self.members)
        )
        read = sorted(chain.from_iterable(r for r, _ in pairs))
        if read != list(range(len(read))):
            raise GrouperError(f"readers must hold every query head from 0 on exactly once, got {shown(read)}")
        object.__setattr__(self, "readers", tuple(r for r, _ in pairs))
        object.__setattr__(self, "members", tuple(s for _, s in pairs))

    @classmethod
    def from_labels(cls, labels: Sequence[int], queries_per_kv_head: int = 1) -> "Grouping":
        """Grouping from labels. labels[j]: group of original KV head j, which `queries_per_kv_head` query heads
        read."""
        n, members = queries_per_kv_head, groups_of(labels)
        readers = tuple(tuple(q for head in group for q in range(head * n, (head + 1) * n)) for group in members)
        return cls(readers, members)

    @property
    def kv_heads(self) -> int:
        return len(self.readers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of query heads per KV head."""
        return tuple(map(len, self.readers))

    @cached_property
    def group_of(self) -> np.ndarray:
        """KV head that each query head reads [query_heads]."""
        labels = np.empty(sum(self.sizes), np.int64)
        for g, readers in enumerate(self.readers):
            labels[list(readers)] = g
        return labels

    @cached_property
    def labels(self) -> np.ndarray:
        """New KV head of each original KV head [original KV heads], in canonical form. Each original head must go into
        exactly one."""
        labels = np.empty(sum(map(len, self.members)), np.int64)
        for g, members in enumerate(self.members):
            labels[list(members)] = g
        return canonical_labels(labels)

    @property
    def reader_order(self) -> list[int]:
        """Query heads group by group, in the order that stock classes need."""
        return [head for readers in self.readers for head in readers]
