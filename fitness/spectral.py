"""The error of a group under the spectral merge (grouper.merging.spectral), from tables made once per layer.

Error of a layer = K error / K energy + V error / V energy. K's is cheap: the leading eigenvalue of a small Hermitian
matrix per RoPE plane. V's is the trace of an S d x S d matrix less its d leading eigenvalues. Searches therefore use
three forms: moves are proposed with a surrogate from pairs of heads, groupings are shortlisted with a screen, and
results are written with the exact error. The screen reduces each head to its own leading directions, `screen_rows` in
all. It bounds the error from above and orders groups nearly as the exact error does (bench/spectral_order.py).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fitness.activation import Activation
from fitness.base import Fitness, kinds_of
from fitness.by_group import ByGroup
from fitness.calibrated import calibrated_errors
from fitness.pairwise import PairwiseFitness
from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging import MEAN
from grouper.merging.leading import beyond_leading
from grouper.merging.plane_signs import best_signs, sum_of
from grouper.merging.spectral_layer import SpectralLayer, SpectralTables

SIZES = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # group sizes that the surrogate is fitted on


@dataclass(frozen=True)
class Spectral(Fitness):
    """Entry of the spectral fitness. screen_rows: number of rows up to which the screen solves a V eigenproblem without
    reducing it. sampled: random groups of each size that the surrogate is fitted on."""

    name: str = "spectral"
    screen_rows: int = 256
    sampled: int = 12
    own_merge = "spectral"
    paper = "ours"
    exact_in = (None,)

    def tables(
        self, attention: Attention, inputs: InputMoments | None, part: str = "kv", device: str = "cpu"
    ) -> "SpectralFitness":
        """Tables of one layer. device: where tables are computed and eigenproblems solved."""
        kinds_of(part, ("kv", "k", "v"))
        tables = SpectralLayer(attention, self.given(inputs), device).tables()
        return SpectralFitness(tables, attention.head_dim, part, self.screen_rows, self.sampled)

    def pairs(self, attention: Attention, inputs: InputMoments | None, part: str = "kv") -> PairwiseFitness:
        return Activation().pairs(attention, self.given(inputs), part)

    def error_of_any_layout(self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None) -> float:
        return sum(calibrated_errors(attention, MEAN.merge(attention, layout), layout, self.given(inputs)))


class SpectralFitness(ByGroup):
    """Exact errors of one layer. `screen` is a cheaper form. `surrogate` is the cheapest: the sum over pairs times a
    factor for each group size, which is measured on a few random groups."""

    def __init__(
        self, tables: SpectralTables, head_dim: int, part: str = "kv", screen_rows: int = 256, sampled: int = 12
    ):
        super().__init__(tables.v.shape[0] // head_dim, tables.v.device)
        self.tables, self.d, self.part = tables, head_dim, part
        self.v_energy = float(tables.v.trace().clamp_min(1e-300))
        k_energy = 0.0
        if tables.planes is not None:
            k_energy += tables.plane_weight * float(tables.planes.diagonal(dim1=1, dim2=2).real.sum())
        if tables.unrotated is not None:
            k_energy += float(tables.unrotated.trace())
        self.k_energy = max(k_energy, 1e-300)
        self.of_k = SpectralKeys(self) if part == "kv" else None
        self.screen, self.sampled = SpectralScreen(self, screen_rows), sampled

    @cached_property
    def surrogate(self) -> PairwiseFitness:
        """Cheapest form, for the moves of searches."""
        a, b = np.triu_indices(self.heads, 1)
        pairs = np.zeros((self.heads, self.heads))
        pairs[a, b] = pairs[b, a] = self.screen.group_errors(list(zip(a.tolist(), b.tolist())))
        rng = np.random.default_rng(0)
        sizes, factors = [2], [0.5]
        for size in sorted({s for s in SIZES if s < self.heads} | {self.heads} - {1, 2}):
            drawn = range(1 if size == self.heads else self.sampled)
            groups = [tuple(sorted(rng.choice(self.heads, size, replace=False).tolist())) for _ in drawn]
            sums = sum(pairs[np.ix_(g, g)].sum() for g in groups)
            sizes.append(size)
            factors.append(float(self.screen.group_errors(groups).sum() / sums) if sums > 0 else 1 / size)
        return PairwiseFitness(pairs, np.interp(np.arange(self.heads + 1), sizes, factors))

    def rows(self, size: int) -> int:
        return size * self.d

    def errors_of(self, index: Tensor) -> Tensor:
        return self.combined(index, beyond_leading(blocks(self.tables.v, index, self.d), self.d))

    def combined(self, index: Tensor, v_errors: Tensor) -> Tensor:
        """Errors [n]: K's plus V's, each over its energy, or only the one that `part` names. index: [n, S] heads;
        v_errors: [n], before division by the energy."""
        v_errors = v_errors / self.v_energy
        if self.part == "v":
            return v_errors
        k_errors = self.k_errors(index) / self.k_energy
        return k_errors if self.part == "k" else k_errors + v_errors

    def k_errors(self, index: Tensor) -> Tensor:
        k, t = torch.zeros(len(index), dtype=torch.float64, device=index.device), self.tables
        if self.planes is not None:
            k += self.plane_errors(index.cpu(), *self.planes).to(k.device)
        if t.unrotated is not None:
            f = t.unrotated.shape[0] // self.heads
            k += beyond_leading(blocks(t.unrotated, index, f), f)
        return k

    def plane_errors(self, index: Tensor, planes: Tensor, fixed: Tensor | None) -> Tensor:
        """K errors summed over RoPE planes. Computed on the CPU: the matrices are tiny and number thousands, for which
        processes would queue at a GPU."""
        sub = planes[:, index[:, :, None], index[:, None, :]]  # [P, n, S, S]
        if fixed is not None:
            return self.tables.plane_weight * _of_mean(sub, fixed.T[:, index]).sum(0)
        return self.tables.plane_weight * torch.linalg.eigvalsh(sub)[..., :-1].clamp_min(0).sum((0, 2))

    @cached_property
    def planes(self) -> tuple[Tensor, Tensor | None] | None:
        """Tables of the RoPE planes and of their fixed directions (None where there are none), on the CPU; None without
        RoPE."""
        t = self.tables
        if t.planes is None:
            return None
        return t.planes.cpu(), None if t.fixed is None else t.fixed.cpu()


class SpectralKeys(ByGroup):
    """K's part of the error alone."""

    def __init__(self, exact: SpectralFitness):
        super().__init__(exact.heads, exact.device)
        self.exact = exact

    def rows(self, size: int) -> int:
        return self.exact.rows(size)

    def errors_of(self, index: Tensor) -> Tensor:
        return self.exact.k_errors(index) / self.exact.k_energy


class SpectralScreen(ByGroup):
    """Screen of the spectral fitness: never below the exact error. In groups of more than `most_rows` rows each head is
    reduced to its own leading directions."""

    def __init__(self, exact: SpectralFitness, most_rows: int):
        super().__init__(exact.heads, exact.device)
        self.exact, self.most_rows = exact, most_rows
        self._reduced: dict[int, Tensor] = {}

    def rows(self, size: int) -> int:
        return size * self.kept(size)

    def kept(self, size: int) -> int:
        """Number of directions kept of each head in a group of `size`; together they are more than d."""
        d = self.exact.d
        return d if size * d <= self.most_rows else min(d, max(self.most_rows // size, -(-d // size) + 1))

    def errors_of(self, index: Tensor) -> Tensor:
        table, d, kept = self.exact.tables.v, self.exact.d, self.kept(index.shape[1])
        whole = table.diagonal().view(self.heads, d).sum(1)[index].sum(1)
        gram = blocks(self.reduced(kept), index, kept)
        inside = gram.diagonal(dim1=1, dim2=2).sum(1)
        return self.exact.combined(index, (whole - inside).clamp_min(0) + beyond_leading(gram, d))

    def reduced(self, kept: int) -> Tensor:
        """V's table projected on each head's own `kept` leading directions: [G * kept, G * kept]."""
        if kept == self.exact.d:
            return self.exact.tables.v
        if kept not in self._reduced:
            blocks = self.exact.tables.v.view(self.heads, self.exact.d, self.heads, self.exact.d)
            basis = self._own_directions[:, :, -kept:]  # [G, d, kept]
            half = torch.einsum("gdk,gdhe->gkhe", basis, blocks)
            self._reduced[kept] = torch.einsum("gkhe,hel->gkhl", half, basis).reshape(self.heads * kept, -1)
        return self._reduced[kept]

    @cached_property
    def _own_directions(self) -> Tensor:
        """[G, d, d]: eigenvectors of each head, strongest last. Computed on the CPU, because a GPU is slow at small
        eigenproblems."""
        blocks = self.exact.tables.v.view(self.heads, self.exact.d, self.heads, self.exact.d)
        own = torch.stack([blocks[h, :, h] for h in range(self.heads)])
        return torch.linalg.eigh(own.cpu())[1].to(own.device)


def blocks(table: Tensor, index: Tensor, d: int) -> Tensor:
    """Blocks of the table [G d, G d] for groups of heads. index: [n, S] heads. Returns [n, S d, S d]."""
    rows = (index[:, :, None] * d + torch.arange(d, device=index.device)).flatten(1)  # [n, S d]
    return table[rows[:, :, None], rows[:, None, :]]


def _of_mean(gram: Tensor, fixed: Tensor) -> Tensor:
    """Energy [...] that remains after projection on `fixed`, with the signs that make it least
    (grouper.merging.plane_signs). gram: [..., S, S] Hermitian; fixed: [..., S]."""
    products = fixed[..., :, None] * fixed[..., None, :] * gram.real
    along = sum_of(products, best_signs(products)) / fixed.square().sum(-1).clamp_min(1e-300)
    return (gram.diagonal(dim1=-2, dim2=-1).real.sum(-1) - along).clamp_min(0)
