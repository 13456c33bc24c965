"""Factors of one layer for the spectral merge and the spectral fitness: the best shared heads, and the tables of
errors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import Groups
from grouper.merging.folding import augmented, energy, row_energy, scored
from grouper.merging.leading import leading_vectors
from grouper.merging.plane_signs import aligned

TINY = 1e-12  # relative to the largest eigenvalue: smaller directions hold rounding


@dataclass(frozen=True)
class SpectralTables:
    """Gram matrices of one layer, which give every group's merge and error; float64.

    v: [G d, G d] A C A^T. planes: [P, G, G] Hermitian b_a C b_b^H, or None without RoPE. unrotated: [G f, G f], or
    None. plane_weight: 1/2 with a partial rotary (a phase-averaged square), else 1. fixed: [G, P] weights of the heads
    in a shared head, up to signs, if no other factor is free; else None.
    """

    v: Tensor
    planes: Tensor | None
    unrotated: Tensor | None
    plane_weight: float
    fixed: Tensor | None = None


class SpectralLayer:
    """Factors of one layer, in the symbols of grouper.merging.spectral; float64."""

    def __init__(self, attention: Attention, inputs: InputMoments, device: str | torch.device = "cpu"):
        self.attention, self.inputs = attention, inputs.to(device)
        self.centred = self.inputs.centred()
        self.kv_heads, self.d = attention.kv_heads, attention.head_dim
        self.queries = attention.queries_per_kv_head
        attention = attention.to(device)
        self.raw_k = augmented(attention.projection("k"))  # [G, d, D + 1]
        q, self.k = scored(attention, self.inputs)  # k: [G, d, D + 1]
        self.q = q.unflatten(0, (self.kv_heads, self.queries))  # [G, queries, d, D + 1]
        self.v = augmented(attention.projection("v"))
        o = attention.o.double().unflatten(1, (self.kv_heads, self.queries))  # [D, G, queries, d]
        self.o = o.permute(1, 2, 0, 3)  # [G, queries, D, d]
        rotary = set(attention.rotated_planes.flatten().tolist())
        self.planes = attention.rotated_planes.to(device)
        rows = [i for i in range(self.d) if i not in rotary]
        self.unrotated = torch.tensor(rows, dtype=torch.long, device=device)
        self._factor()

    def _factor(self) -> None:
        factors = [torch.linalg.qr(head) for head in self.o.flatten(1, 2)]  # one by one: a batch takes 16 GB of a GPU
        self.o_basis, r = (torch.stack(parts) for parts in zip(*factors))  # [G, queries D, d], [G, d, d]
        self.a_v = r @ self.v  # [G, d, D + 1]
        if len(self.planes):
            a, b = self.planes.T
            self.kappa = torch.complex(self.k[:, a], self.k[:, b])  # [G, P, D + 1]
            rows = row_energy(self.q, self.inputs.of_queries).sum(1)  # [G, d]
            self.q_energy = (rows[:, a] + rows[:, b]).clamp_min(0)  # [G, P]
            self.b = self.q_energy.sqrt()[..., None] * self.kappa
        if len(self.unrotated):
            q = self.q[:, :, self.unrotated]
            gram = torch.einsum("gqfx,gqex->gfe", self.inputs.of_queries.times(q), q)
            values, vectors = torch.linalg.eigh(gram)
            keep = values > TINY * values[:, -1:].clamp_min(1e-300)
            root = torch.where(keep, values, 0).sqrt()
            inverse = torch.where(keep, 1 / root.clamp_min(1e-300), 0)
            self.l_inverse = inverse[:, :, None] * vectors.transpose(1, 2)  # [G, f, f], L^+
            self.a_k = root[:, :, None] * vectors.transpose(1, 2) @ self.k[:, self.unrotated]  # [G, f, D + 1], L^T W_K

    def tables(self) -> SpectralTables:
        planes = unrotated = None
        if len(self.planes):
            planes = self._plane_gram(self.b.transpose(0, 1))
        if len(self.unrotated):
            unrotated = gram_of(self.a_k.flatten(0, 1), self.centred)
        partial = len(self.planes) > 0 and len(self.unrotated) > 0
        fixed = self.q_energy.sqrt() if self.attention.qk_norm == "head" else None
        return SpectralTables(
            gram_of(self.a_v.flatten(0, 1), self.inputs), planes, unrotated, 0.5 if partial else 1.0, fixed
        )

    def _plane_gram(self, b: Tensor) -> Tensor:
        """Gram matrices [P, S, S] of b [P, S, D + 1]: Hermitian, or real if a norm across heads allows only real
        factors."""
        gram = self.inputs.times(b) @ b.mH
        return gram.real if self.attention.qk_norm == "all" else gram

    def signs(self, groups: Groups) -> Tensor:
        """Signs of planes [G, P] that keep most of the heads in the weighted mean of each group; 1 without RoPE."""
        if not len(self.planes):
            return self.k.new_ones(self.kv_heads, 0)
        root = self.q_energy.sqrt().T  # [P, G]
        gram = self._plane_gram(self.b.transpose(0, 1)).real  # [P, G, G]
        return aligned(root[:, :, None] * root[:, None] * gram, groups)

    def key_energy(self, sources: list[int]) -> Tensor:
        """Energy E|k_h|^2 of each head before the merge [S]. The part common to all keys is excluded for unrotated
        rows."""
        k = self.k[sources]
        total = k.new_zeros(len(sources))
        if len(self.planes):
            total += energy(k[:, self.planes.flatten()], self.inputs)
        if len(self.unrotated):
            total += energy(k[:, self.unrotated], self.centred)
        return total

    def shared_v(self, sources: list[int]) -> tuple[Tensor, Tensor]:
        """Shared V head [d, D + 1], and the readers' O' [S, queries, D, d]."""
        a = self.a_v[sources].flatten(0, 1)
        u = leading_vectors(gram_of(a, self.inputs), self.d)  # [S d, d]
        shared = u.T @ a
        o = self.o_basis[sources] @ u.unflatten(0, (len(sources), self.d))  # [S, queries D, d]
        size = shared.square().sum(1)
        balance = (o.square().sum((0, 1)) / len(sources) / self.queries / size.clamp_min(1e-300)).pow(0.25)
        balance = torch.where(size > 0, balance, 1.0)
        return balance[:, None] * shared, (o / balance).unflatten(1, (self.queries, -1))

    def shared_planes(self, sources: list[int]) -> tuple[Tensor, Tensor]:
        """Shared K rows kappa [P, D + 1], complex, and the factors c [S, P] of each head."""
        if self.attention.qk_norm == "head":
            kappa = weighted_mean(self.kappa[sources], self.q_energy[sources])
            return kappa, kappa.new_ones(len(sources), len(kappa))
        b = self.b[sources].transpose(0, 1)  # [P, S, D + 1]
        vectors = torch.linalg.eigh(self._plane_gram(b))[1].to(b.dtype)
        u = vectors[..., -1]  # [P, S]
        strongest = u.gather(1, u.abs().argmax(1, keepdim=True))
        u = u * (strongest.conj() / strongest.abs().clamp_min(1e-300))
        kappa = (u.conj()[..., None] * b).sum(1)
        root = self.q_energy[sources].sqrt().T  # [P, S]
        c = torch.where(root > 0, u / root.clamp_min(1e-300), 0)
        size = kappa.abs().square().sum(-1).sqrt()
        wanted = self.kappa[sources].abs().square().sum(-1).mean(0).sqrt()  # [P]
        scale = torch.where(size > 0, wanted / size.clamp_min(1e-300), 1.0)
        scale = torch.where(scale > 0, scale, 1.0)
        return kappa * scale[:, None], (c / scale[:, None]).T

    def shared_unrotated(self, sources: list[int]) -> tuple[Tensor, Tensor]:
        """Shared unrotated K rows [f, D + 1], and the matrices [S, f, f] that multiply q's rows."""
        a = self.a_k[sources].flatten(0, 1)
        f = len(self.unrotated)
        u = leading_vectors(gram_of(a, self.centred), f)
        shared = u.T @ a
        size = shared.square().sum(1).sqrt()
        wanted = self.k[sources][:, self.unrotated].square().sum((1, 2)).mean().div(f).sqrt()
        scale = torch.where(size > TINY * size.max().clamp_min(1e-300), wanted / size.clamp_min(1e-300), 1.0)
        shared[:, -1] = 0  # a constant key shifts all scores by the same amount
        fold = u.unflatten(0, (len(sources), f)).transpose(1, 2) @ self.l_inverse[sources]
        return shared * scale[:, None], fold / scale[None, :, None]


def gram_of(rows: Tensor, inputs: InputMoments) -> Tensor:
    """Product rows C rows^T [X, X], symmetric; each off-diagonal pair is computed once. rows: [X, D + 1]."""
    seen, half = inputs.times(rows), len(rows) // 2
    gram = rows.new_empty(len(rows), len(rows))
    corner = seen[:half] @ rows[half:].T
    gram[:half, half:], gram[half:, :half] = corner, corner.T
    for part in (slice(half), slice(half, None)):
        block = seen[part] @ rows[part].T
        gram[part, part] = (block + block.T) / 2
    return gram


def weighted_mean(kappa: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the heads [P, X]. kappa: [S, P, X]. weight: [S, P]."""
    total = weight.sum(0)
    share = torch.where(total > 0, weight / total.clamp_min(1e-300), 1 / len(weight))
    return (share[..., None] * kappa).sum(0)
