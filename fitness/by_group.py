"""Fitnesses whose error is a sum over groups, each group's own error being expensive: scored in batches, and kept."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BATCH = 1 << 24  # elements of matrices that are worked on together


class ByGroup(ABC):
    """heads: of the layer before regrouping (G). device: where errors are computed."""

    of_k: "ByGroup | None" = None

    def __init__(self, heads: int, device: torch.device):
        self.heads, self.device = heads, device
        self._known: dict[tuple[int, ...], float] = {(h,): 0.0 for h in range(heads)}

    @abstractmethod
    def rows(self, size: int) -> int:
        """Of the largest matrix that a group of so many heads asks for."""

    @abstractmethod
    def errors_of(self, index: Tensor) -> Tensor:
        """index: [n, S] heads of groups of one size. Returns their errors [n]."""

    def group_errors(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n]: the error of each group of heads (ascending tuples) merged into one."""
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
        """labels: [n, G] group of each head, any names. Returns [n]."""
        labels = np.atleast_2d(labels)
        rows = [[tuple(np.flatnonzero(row == g).tolist()) for g in np.unique(row)] for row in labels]
        flat = self.group_errors([group for groups in rows for group in groups])
        ends = np.cumsum([len(groups) for groups in rows])
        return np.array([part.sum() for part in np.split(flat, ends[:-1])])
