"""What a search asks of a fitness: the error of one layer when its KV heads are grouped so or so."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fitness.pairwise import PairwiseFitness


class LayerFitness(Protocol):
    """One layer, scored from tables made once; never touches the weights again.

    heads: KV heads of the layer before regrouping (G).
    surrogate: an error that follows from pairs of heads and group sizes alone, by which searches choose their moves; the fitness itself
        where it is of that form.
    """

    heads: int
    surrogate: PairwiseFitness

    def group_errors(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n]: the error of each group of heads (ascending tuples) merged into one; 0 for one head alone."""

    def errors(self, labels: np.ndarray) -> np.ndarray:
        """labels: [n, G] group of each head, any names. Returns [n], the layer's error: the sum over groups."""
