"""Fitnesses whose error is a sum over groups and expensive for each: groups are scored in batches, and their errors
kept."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BATCH = 1 << 24  # matrix elements per batch


class ByGroup(ABC):
    """Base of fitnesses that are scored group by group. heads: number of KV heads before regrouping (G). device: where
    errors are computed."""

    of_k: "ByGroup | None" = None

    def __init__(self, heads: int, device: torch.device):
        self.heads, self.device = heads, device
        self._known: dict[tuple[int, ...], float] = {(h,): 0.0 for h in range(heads)}

    @abstractmethod
    def rows(self, size: int) -> int:
        """Number of rows of the largest matrix needed for a group of `size` heads."""

    @abstractmethod
    def errors_of(self, index: Tensor) -> Tensor:
        """Errors [n] of groups of one size. index: [n, S] heads of each group."""

    def group_errors(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n]: error of each group (an ascending tuple of heads) when it is merged into one KV head."""
        missing: dict[int, set[tuple[int, ...]]] = {}
        for group in groups:
            if group not in self._known:
                missing.setdefault(len(group), set()).add(group)
        for size, found in missing.items():
            rows = sorted(found)
            step = max(1, BATCH // self.rows(size) ** 2)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                errors = self.errors_of(torch.tensor(part, device=self.device)).tolist()
                self._known.update(zip(part, errors))
        return np.array([self._known[group] for group in groups])

    def errors(self, labels: np.ndarray) -> np.ndarray:
        """Errors of the layer, [n]. labels: [n, G] group of each head; any labels will do."""
        labels = np.atleast_2d(labels)
        rows = [[tuple(np.flatnonzero(row == g).tolist()) for g in np.unique(row)] for row in labels]
        flat = self.group_errors([group for groups in rows for group in groups])
        ends = np.cumsum([len(groups) for groups in rows])
        return np.array([part.sum() for part in np.split(flat, ends[:-1])])
