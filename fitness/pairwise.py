"""Fitnesses whose group error is a within-group sum of squares, and so follows from the errors of pairs alone."""

from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 22  # elements of [n, G, G] per batch


class PairwiseFitness:
    """Errors of the form sum over groups g of by_size[|g|] 1_g^T pairs 1_g, where 1_g^T pairs 1_g counts every pair
    twice.

    With by_size[s] = 1 / s, the default, and pairs[a, b] = (G_aa + G_bb - 2 G_ab) / 2 for a Gram matrix G of the heads,
    that is the within-group sum of squares around the group's mean: tr G - sum over g of (1 / |g|) 1_g^T G 1_g.
    Differences of close numbers are taken once, in float64, when the table is made. Groups of equal heads therefore
    cost exactly 0, not a rounding error of tr G.

    pairs: [G, G], zero diagonal; by_size: [G + 1]. distance: [G, G] distances between heads, for methods that choose by
    distance (AsymGQA); default: `pairs`.
    """

    def __init__(self, pairs: np.ndarray, by_size: np.ndarray | None = None, distance: np.ndarray | None = None):
        self.pairs = np.ascontiguousarray(pairs, dtype=np.float64)
        self.heads = len(self.pairs)
        self.of_k: PairwiseFitness | None = None
        self.distance = self.pairs if distance is None else distance
        self.by_size = (
            1 / np.maximum(np.arange(self.heads + 1), 1) if by_size is None else np.asarray(by_size, np.float64)
        )

    @property
    def surrogate(self) -> "PairwiseFitness":
        return self

    @property
    def screen(self) -> "PairwiseFitness":
        return self

    @classmethod
    def from_gram(cls, gram: np.ndarray, scale: float = 1.0, distance: np.ndarray | None = None) -> "PairwiseFitness":
        """Errors from a Gram matrix. gram: [G, G] inner products of the heads. Errors are divided by `scale`."""
        gram = np.asarray(gram, np.float64)
        energy = np.diag(gram)
        pairs = (energy[:, None] + energy[None, :] - 2 * gram) / 2
        pairs[pairs < 1e-12 * (energy[:, None] + energy[None, :])] = 0  # equal up to float64 rounding
        return cls((pairs + pairs.T) / 2 / scale, distance=distance)

    def group_errors(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        member = np.zeros((len(groups), self.heads))
        for row, group in zip(member, groups):
            row[list(group)] = 1
        return self.membership_errors(member)

    def membership_errors(self, member: np.ndarray) -> np.ndarray:
        """Errors [n] of single groups. member: [n, G] of 0 and 1, one group per row."""
        return np.einsum("na,na->n", member @ self.pairs, member) * self.by_size[member.sum(-1).astype(int)]

    def errors(self, labels: np.ndarray) -> np.ndarray:
        labels = np.atleast_2d(labels)
        out = np.empty(len(labels))
        step = max(1, CHUNK // self.heads**2)
        for start in range(0, len(labels), step):
            rows = labels[start : start + step]
            same = rows[:, :, None] == rows[:, None, :]  # [n, G, G]
            row_sums = (same * self.pairs).sum(-1)  # [n, G]
            out[start : start + step] = (row_sums * self.by_size[same.sum(-1)]).sum(-1)
        return out
