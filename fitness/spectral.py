"""The error of a group under the spectral merge (grouper.merging.spectral), from tables made once per layer.

Error of a layer = K error / K energy + V error / V energy. K's is cheap: the leading eigenvalue of a small Hermitian
matrix per RoPE plane. V's asks for the d leading eigenvalues of an S d x S d matrix. Groups of up to `exact_rows` rows
get them all; in larger ones each head is first reduced to its own leading directions, which bounds the error from above
and orders groups as the exact one does (bench/spectral_order.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fitness.activation import Activation
from fitness.base import Fitness, kinds_of
from fitness.calibrated import calibrated_errors
from fitness.pairwise import PairwiseFitness
from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging import MEAN
from grouper.merging.spectral_layer import SpectralLayer, SpectralTables

BATCH = 1 << 24  # elements of eigenproblems solved together
SIZES = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of groups that the surrogate learns from


@dataclass(frozen=True)
class Spectral(Fitness):
    """exact_rows: of a V eigenproblem that is solved as it is. sampled: random groups of each size that the surrogate
    learns from."""

    name: str = "spectral"
    exact_rows: int = 256
    sampled: int = 12
    own_merge = "spectral"
    paper = "ours"
    exact_in = (None,)

    def tables(
        self, attention: Attention, inputs: InputMoments, part: str = "kv", device: str = "cpu"
    ) -> "SpectralFitness":
        """device: also where eigenproblems are solved."""
        kinds_of(part, ("kv", "k", "v"))
        tables = SpectralLayer(attention, inputs, device).tables()
        return SpectralFitness(tables, attention.head_dim, part, self.exact_rows, self.sampled)

    def pairs(self, attention: Attention, inputs: InputMoments, part: str = "kv") -> PairwiseFitness:
        return Activation().pairs(attention, inputs, part)

    def error_of_any_layout(self, attention: Attention, layout: LayerLayout, inputs: InputMoments) -> float:
        return sum(calibrated_errors(attention, MEAN.merge(attention, layout), layout, inputs))


class SpectralFitness:
    """A LayerFitness whose group error is no sum over pairs: searches go by the surrogate and settle on exact errors,
    kept by group.

    The surrogate scales the sum of pairs by a factor for each group size, measured on a few random groups.
    """

    def __init__(
        self, tables: SpectralTables, head_dim: int, part: str = "kv", exact_rows: int = 256, sampled: int = 12
    ):
        self.tables, self.d, self.part = tables, head_dim, part
        self.exact_rows, self.sampled = exact_rows, sampled
        self.heads = tables.v.shape[0] // head_dim
        self.v_energy = float(tables.v.trace().clamp_min(1e-300))
        k_energy = 0.0
        if tables.planes is not None:
            k_energy += tables.plane_weight * float(tables.planes.diagonal(dim1=1, dim2=2).real.sum())
        if tables.unrotated is not None:
            k_energy += float(tables.unrotated.trace())
        self.k_energy = max(k_energy, 1e-300)
        self._known: dict[tuple[int, ...], float] = {(h,): 0.0 for h in range(self.heads)}
        self._reduced: dict[int, Tensor] = {}
        self.surrogate = self._surrogate()

    def _surrogate(self) -> PairwiseFitness:
        a, b = np.triu_indices(self.heads, 1)
        pairs = np.zeros((self.heads, self.heads))
        pairs[a, b] = pairs[b, a] = self.group_errors(list(zip(a.tolist(), b.tolist())))
        rng = np.random.default_rng(0)
        sizes, factors = [2], [0.5]
        for size in sorted({s for s in SIZES if s < self.heads} | {self.heads} - {1, 2}):
            drawn = range(1 if size == self.heads else self.sampled)
            groups = [tuple(sorted(rng.choice(self.heads, size, replace=False).tolist())) for _ in drawn]
            sums = sum(pairs[np.ix_(g, g)].sum() for g in groups)
            sizes.append(size)
            factors.append(float(self.group_errors(groups).sum() / sums) if sums > 0 else 1 / size)
        return PairwiseFitness(pairs, np.interp(np.arange(self.heads + 1), sizes, factors))

    def group_errors(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        by_size: dict[int, set[tuple[int, ...]]] = {}
        for group in groups:
            if group not in self._known:
                by_size.setdefault(len(group), set()).add(group)
        for size, missing in by_size.items():
            rows = sorted(missing)
            side = max(1, min(size * self.d, self.exact_rows))
            step = max(1, BATCH // (side * side))
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                index = torch.tensor(part, device=self.tables.v.device)  # [n, S]
                for group, error in zip(part, self._errors(index).tolist()):
                    self._known[group] = error
        return np.array([self._known[group] for group in groups])

    def errors(self, labels: np.ndarray) -> np.ndarray:
        labels = np.atleast_2d(labels)
        rows = [[tuple(np.flatnonzero(row == g).tolist()) for g in np.unique(row)] for row in labels]
        flat = self.group_errors([group for groups in rows for group in groups])
        ends = np.cumsum([len(groups) for groups in rows])
        return np.array([part.sum() for part in np.split(flat, ends[:-1])])

    def _errors(self, index: Tensor) -> Tensor:
        """index: [n, S] heads. Returns [n]."""
        k = torch.zeros(len(index), dtype=torch.float64, device=index.device)
        t = self.tables
        if self.part == "v":
            return self._v_errors(index) / self.v_energy
        if t.planes is not None:
            sub = t.planes[:, index[:, :, None], index[:, None, :]]  # [P, n, S, S]
            if t.fixed is None:
                values = torch.linalg.eigvalsh(sub)
                k += t.plane_weight * values[..., :-1].clamp_min(0).sum((0, 2))
            else:
                k += t.plane_weight * _of_mean(sub, t.fixed.T[:, index]).sum(0)
        if t.unrotated is not None:
            f = t.unrotated.shape[0] // self.heads
            k += _tail(_blocks(t.unrotated, index, f), f)
        k = k / self.k_energy
        return k if self.part == "k" else k + self._v_errors(index) / self.v_energy

    def _v_errors(self, index: Tensor) -> Tensor:
        size = index.shape[1]
        if size * self.d <= self.exact_rows:
            return _tail(_blocks(self.tables.v, index, self.d), self.d)
        kept = max(self.exact_rows // size, -(-self.d // size) + 1)  # directions of each head; together more than d
        whole = self.tables.v.diagonal().view(self.heads, self.d).sum(1)[index].sum(1)
        sub = _blocks(self._reduce(kept), index, kept)
        values = torch.linalg.eigvalsh(sub)
        return (whole - values[:, -self.d :].sum(1)).clamp_min(0)

    def _reduce(self, kept: int) -> Tensor:
        """[G kept, G kept]: the table in each head's own `kept` leading directions."""
        if kept not in self._reduced:
            blocks = self.tables.v.view(self.heads, self.d, self.heads, self.d)
            own = torch.stack([blocks[h, :, h] for h in range(self.heads)])
            basis = torch.linalg.eigh(own)[1][:, :, -kept:]  # [G, d, kept]
            self._reduced[kept] = torch.einsum("gdk,gdhe,hel->gkhl", basis, blocks, basis).reshape(
                self.heads * kept, -1
            )
        return self._reduced[kept]


def _blocks(table: Tensor, index: Tensor, d: int) -> Tensor:
    """table [G d, G d], index [n, S]. Returns [n, S d, S d]."""
    rows = (index[:, :, None] * d + torch.arange(d, device=index.device)).flatten(1)  # [n, S d]
    return table[rows[:, :, None], rows[:, None, :]]


def _of_mean(gram: Tensor, fixed: Tensor) -> Tensor:
    """gram [..., S, S] Hermitian, fixed [..., S]. Returns [...]: what the projection on `fixed` leaves."""
    along = torch.einsum("...a,...ab,...b->...", fixed, gram.real, fixed) / fixed.square().sum(-1).clamp_min(1e-300)
    return (gram.diagonal(dim1=-2, dim2=-1).real.sum(-1) - along).clamp_min(0)


def _tail(gram: Tensor, d: int) -> Tensor:
    """[n, X, X]: the sum of all but the d largest eigenvalues, zero up to rounding where there are no others."""
    values = torch.linalg.eigvalsh(gram)
    return values[:, :-d].clamp_min(0).sum(1)
