"""What a search asks of a fitness: the error of one layer when its KV heads are grouped so or so."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class LayerFitness(Protocol):
    """One layer, scored from tables made once; never touches the weights again.

    heads: KV heads of the layer before regrouping (G).
    pairs: [G, G] float64, zero diagonal: the error of merging two heads. Cheap moves are chosen by it.
    pairwise: True where a group's error is exactly 2 / |group| times the sum of its pairs' errors, so that `pairs` says all.
    """

    heads: int
    pairs: np.ndarray
    pairwise: bool

    def group_errors(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n]: the error of each group of heads (ascending tuples) merged into one; 0 for one head alone."""

    def errors(self, labels: np.ndarray) -> np.ndarray:
        """labels: [n, G] group of each head, any names. Returns [n], the layer's error: the sum over groups."""
