"""Spectral merge: the best shared head in closed form, as attention sees it.

What attention sees of V is W_O W_V, and of K the score q.k, so a basis inside a head is free. Under the inputs' second moment C:

V.  min over V, O'_h of sum_h |(W_O^h W_V^h - O'_h V) C^(1/2)|^2. With W_O^h = Q_h R_h, A_h = R_h W_V^h and M = A C A^T stacked over the group, U
    the d leading eigenvectors of M: V = U^T A, O'_h = Q_h U_h. The error is the sum of M's other eigenvalues.
K with RoPE.  Rows of one plane are a complex row kappa_h, and complex factors commute with RoPE. min of sum_h w_h |kappa_h - c_h kappa|^2_C with
    w_h = |q_h|^2_C, per plane: with b_h = sqrt(w_h) kappa_h and u the leading eigenvector of the Hermitian b_a C b_b^H:
    kappa = sum_a conj(u_a) b_a, c_h = u_h / sqrt(w_h), q_h takes conj(c_h). The error is trace minus leading eigenvalue.
K without RoPE, or its unrotated part.  As V, with W_Q in the place of W_O: L_h L_h^T = W_Q^h C W_Q^h^T, A_h = L_h^T W_K^h,
    W_Q'^h = U_h^T L_h^+ W_Q^h. A constant added to all keys cancels in softmax: the key side's C is centred and k's bias dropped.

Where several query heads read a KV head already, their W_O^T W_O, query energies and W_Q C W_Q^T are summed. Biases ride along as the weight
of a constant input. Where norms stand between projection and RoPE, K is merged as grouper.merging.normed_keys says. Everything is float64.
Phases and scales that are free are fixed: the factor of the strongest head is real and positive, K keeps its heads' mean energy, V and O
share theirs evenly.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging.folding import augmented, check_readers_are_sources, energy, scored, split
from grouper.merging.normed_keys import merge_keys, weighted_mean

TINY = 1e-12  # of the largest eigenvalue: directions below carry rounding


@dataclass(frozen=True)
class SpectralTables:
    """One layer's Gram matrices, from which every group's merge and error follow. G KV heads, d head_dim, float64.

    v: [G d, G d] A C A^T.  planes: [P, G, G] Hermitian b_a C b_b^H, or None without RoPE.  free: [G f, G f] for the f unrotated
    components, or None.  plane_weight: 1/2 with a partial rotary (a phase-averaged square), else 1.  fixed: [G, P] how a shared head is put
    together where no factor is free, else None.
    """

    v: Tensor
    planes: Tensor | None
    free: Tensor | None
    plane_weight: float
    fixed: Tensor | None = None


class SpectralLayer:
    """The factors of one layer: what `merge` folds, and the tables that the fitness scores from."""

    def __init__(self, attention: Attention, inputs: InputMoments, device: str | torch.device = "cpu"):
        self.attention = attention
        self.second = inputs.second.to(device, torch.float64)
        mean = self.second[:, -1]  # the last input is the constant 1
        self.centred = self.second - torch.outer(mean, mean) / mean[-1].clamp_min(TINY)
        self.heads, self.d = attention.kv_heads, attention.head_dim
        self.queries = attention.query_heads // self.heads
        self.raw_k = augmented(attention.k, attention.k_bias).to(device)  # [G, d, D + 1]
        q, k = scored(attention, inputs.second.double())
        self.k, self.q = (
            k.to(device),
            q.to(device).unflatten(0, (self.heads, self.queries)),
        )  # [G, d, D + 1], [G, queries, d, D + 1]
        self.v = augmented(attention.v, attention.v_bias).to(device)
        rotary = set() if attention.planes is None else set(attention.planes.flatten().tolist())
        self.planes = attention.planes.to(device) if rotary else None
        self.free = torch.tensor([i for i in range(self.d) if i not in rotary], dtype=torch.long, device=device)
        self._factor()

    def _factor(self) -> None:
        o = self.attention.o.to(self.v).unflatten(1, (self.heads, self.queries))  # [D, G, queries, d]
        stacked = o.permute(1, 2, 0, 3).flatten(1, 2)  # [G, queries D, d]
        self.o_basis, r = torch.linalg.qr(stacked)
        self.a_v = r @ self.v  # [G, d, D + 1]
        if self.planes is not None:
            a, b = self.planes.T
            self.kappa = torch.complex(self.k[:, a], self.k[:, b])  # [G, P, D + 1]
            q = torch.complex(self.q[:, :, a], self.q[:, :, b])  # [G, queries, P, D + 1]
            self.q_energy = (q @ self.second.to(q.dtype) * q.conj()).sum(-1).real.sum(1).clamp_min(0)  # [G, P]
            self.b = self.q_energy.sqrt()[..., None] * self.kappa
        if len(self.free):
            q = self.q[:, :, self.free]
            gram = torch.einsum("gqfx,xy,gqey->gfe", q, self.second, q)
            values, vectors = torch.linalg.eigh(gram)
            keep = values > TINY * values[:, -1:].clamp_min(1e-300)
            root = torch.where(keep, values, 0).sqrt()
            self.l_t = root[:, :, None] * vectors.transpose(1, 2)  # [G, f, f], L^T
            self.l_inverse = torch.where(keep, 1 / root.clamp_min(1e-300), 0)[:, :, None] * vectors.transpose(
                1, 2
            )  # L^+
            self.a_k = self.l_t @ self.k[:, self.free]  # [G, f, D + 1]

    def tables(self) -> SpectralTables:
        v = self.a_v.flatten(0, 1)
        planes = free = None
        if self.planes is not None:
            b = self.b.transpose(0, 1)  # [P, G, D + 1]
            planes = b @ self.second.to(b.dtype) @ b.conj().transpose(1, 2)
            planes = planes.real if self.attention.qk_norm == "all" else planes
        if len(self.free):
            a = self.a_k.flatten(0, 1)
            free = a @ self.centred @ a.T
        partial = self.planes is not None and len(self.free) > 0
        fixed = self.q_energy.sqrt() if self.attention.qk_norm == "head" else None
        return SpectralTables(v @ self.second @ v.T, planes, free, 0.5 if partial else 1.0, fixed)

    def merge_v(self, sources: list[int]) -> tuple[Tensor, Tensor]:
        """The shared V head [d, D + 1] and the readers' O' [S, queries, D, d]."""
        a = self.a_v[sources].flatten(0, 1)
        u = _leading(a @ self.second @ a.T, self.d)  # [S d, d]
        shared = u.T @ a
        o = self.o_basis[sources] @ u.unflatten(0, (len(sources), self.d))  # [S, queries D, d]
        balance = (o.square().sum((0, 1)) / len(sources) / self.queries / shared.square().sum(1).clamp_min(1e-300)).pow(
            0.25
        )
        balance = torch.where(shared.square().sum(1) > 0, balance, 1.0)
        return balance[:, None] * shared, (o / balance).unflatten(1, (self.queries, -1))

    def merge_planes(self, sources: list[int]) -> tuple[Tensor, Tensor]:
        """The shared K rows kappa [P, D + 1], complex, and each head's factors c [S, P]."""
        if self.attention.qk_norm == "head":
            kappa = weighted_mean(self.kappa[sources], self.q_energy[sources])
            return kappa, kappa.new_ones(len(sources), len(kappa))
        b = self.b[sources].transpose(0, 1)  # [P, S, D + 1]
        gram = b @ self.second.to(b.dtype) @ b.conj().transpose(1, 2)
        _, vectors = torch.linalg.eigh(gram.real if self.attention.qk_norm == "all" else gram)
        vectors = vectors.to(b.dtype)
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

    def merge_free(self, sources: list[int]) -> tuple[Tensor, Tensor]:
        """The shared unrotated K rows [f, D + 1] and the matrices [S, f, f] that q's rows are multiplied with."""
        a = self.a_k[sources].flatten(0, 1)
        f = len(self.free)
        u = _leading(a @ self.centred @ a.T, f)
        shared = u.T @ a
        size = shared.square().sum(1).sqrt()
        wanted = self.k[sources][:, self.free].square().sum((1, 2)).mean().div(f).sqrt()
        scale = torch.where(size > TINY * size.max().clamp_min(1e-300), wanted / size.clamp_min(1e-300), 1.0)
        shared = shared.clone()
        shared[:, -1] = 0  # a constant key shifts all scores alike
        fold = u.unflatten(0, (len(sources), f)).transpose(1, 2) @ self.l_inverse[sources]
        return shared * scale[:, None], fold / scale[None, :, None]


def _leading(gram: Tensor, n: int) -> Tensor:
    """The n leading eigenvectors [X, n] of a symmetric matrix, strongest first, the largest entry of each positive."""
    _, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    u = vectors[:, -n:].flip(1)
    signs = torch.gather(u, 0, u.abs().argmax(0, keepdim=True)).sign()
    return u * torch.where(signs == 0, 1.0, signs)


def merge(
    attention: Attention, layout: LayerLayout, inputs: InputMoments, rescale: bool = True, device: str = "cpu"
) -> Attention:
    """Merge one layer.

    rescale: restore each head's K energy, which the projection shrinks (attention would flatten): q_h takes sqrt(E|k_h|^2 / E|k'_h|^2), k' the
    shared head as h sees it. Leave it out before refinement. Raises GrouperError where readers are not the sources' own.
    """
    check_readers_are_sources(attention, layout, "spectral")
    layer = SpectralLayer(attention, inputs, device)
    q = layer.q.clone()  # [G, queries, d, D + 1]
    o = torch.empty(layer.heads, layer.queries, attention.o.shape[0], layer.d, dtype=torch.float64, device=device)
    merged_k, merged_v = [], []
    original_o = attention.o.to(o).unflatten(1, (layer.heads, layer.queries)).permute(1, 2, 0, 3)
    for sources in map(list, layout.v.sources):
        if len(sources) == 1:  # nothing to share: as it was, to the bit
            shared, o[sources] = layer.v[sources[0]], original_o[sources]
        else:
            shared, o[sources] = layer.merge_v(sources)
        merged_v.append(shared)
    for sources in map(list, layout.k.sources) if attention.qk_norm is None else ():
        shared = torch.zeros_like(layer.k[0])
        seen = layer.k.new_zeros(len(sources))
        if len(sources) == 1:
            merged_k.append(layer.k[sources[0]])
            continue
        if layer.planes is not None:
            a, b = layer.planes.T
            kappa, c = layer.merge_planes(sources)
            shared[a], shared[b] = kappa.real, kappa.imag
            turned = torch.complex(layer.q[sources][:, :, a], layer.q[sources][:, :, b]) * c.conj()[:, None, :, None]
            rows = q[sources]
            rows[:, :, a], rows[:, :, b] = turned.real, turned.imag
            q[sources] = rows
            in_heads = c[..., None] * kappa  # [S, P, D + 1]
            seen += (in_heads @ layer.second.to(kappa.dtype) * in_heads.conj()).sum((1, 2)).real
        if len(layer.free):
            free, fold = layer.merge_free(sources)
            shared[layer.free] = free
            rows = q[sources]
            rows[:, :, layer.free] = fold[:, None] @ layer.q[sources][:, :, layer.free]
            q[sources] = rows
            # as the head's own basis sees it: fold^T takes the shared rows back, for scores are q . k
            back = fold.transpose(1, 2) @ free
            seen += energy(back, layer.centred)
        if rescale:
            own = energy(layer.k[sources], layer.second)
            if layer.planes is None:
                own = energy(layer.k[sources], layer.centred)
            elif len(layer.free):
                part = layer.planes.flatten()
                own = energy(layer.k[sources][:, part], layer.second) + energy(
                    layer.k[sources][:, layer.free], layer.centred
                )
            scale = torch.where(seen > 0, (own / seen.clamp_min(1e-300)).sqrt(), 1.0)
            q[sources] = q[sources] * scale[:, None, None, None]
        merged_k.append(shared)

    if attention.qk_norm is None:
        new_q, q_bias = split(q.flatten(0, 1), attention.q_bias, attention.q)
        new_k, k_bias = split(torch.stack(merged_k), attention.k_bias, attention.k)
        keys = {"q": new_q, "q_bias": q_bias, "k": new_k, "k_bias": k_bias}
    else:
        keys = merge_keys(layer, layout, rescale)
    new_v, v_bias = split(torch.stack(merged_v), attention.v_bias, attention.v)
    return replace(attention, **keys, v=new_v, v_bias=v_bias, o=o.flatten(0, 1).permute(1, 0, 2).to(attention.o))
