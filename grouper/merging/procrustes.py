"""Procrustes merge: rotate heads onto one another, then average ("Align attention heads before merging them", arXiv
2412.20677).

A V head may be rotated by any orthogonal matrix, undone in W_O; a K head with RoPE by one angle per frequency plane,
undone in W_Q; a K head without RoPE, or its unrotated part, by any orthogonal matrix. Rotations and mean are computed
in turns (generalised Procrustes). Averaging shrinks a head, so each query head's q and o are scaled to restore the norm
of the head that it reads. As in the paper, heads are compared by their outputs on calibration text, here through the
inputs' second moment C. Only the inner products W C W'^T of heads are needed, which are small, so that C itself [D + 1,
D + 1] is never decomposed.

With a norm between projection and RoPE, K cannot be rotated (the norm's gains differ from row to row) and q cannot be
scaled. K is then the plain mean, after the signs of its planes were matched (grouper.merging.plane_signs).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from grouper.attention import Attention, Projection
from grouper.calibration.input_moments import AssumedInputs, InputMoments
from grouper.layout import Grouping, LayerLayout
from grouper.merging.base import Merge
from grouper.merging.folding import augmented, check_readers_are_sources, energy, split
from grouper.merging.mean import averaged
from grouper.merging.plane_signs import aligned, with_signs


@dataclass(frozen=True)
class Procrustes(Merge):
    """Procrustes merge. iterations: most rounds of rotations and mean. gain: stop when the aligned norm grows by less
    than this share."""

    name: str = "procrustes"
    iterations: int = 100
    gain: float = 1e-9
    paper = "Align heads before merging, arXiv 2412.20677"
    expensive = True
    behind_norms: ClassVar[dict[str, str]] = dict.fromkeys(("head", "all"), "rotates V, and takes signs of K's planes")

    def merge(self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None) -> Attention:
        """Merge a layer. Raises GrouperError if query heads would read heads that theirs are not merged into."""
        check_readers_are_sources(attention, layout, self.name)
        inputs = AssumedInputs.from_norm(None, None, attention.q.shape[-1]) if inputs is None else inputs
        if attention.qk_norm:
            agreeing = with_signs(attention, self.signs(attention, layout.k, inputs))
            merged = agreeing.with_projections({"k": averaged(agreeing, "k", layout.k)})
        else:
            merged = self.keys(attention, layout.k, inputs)
        v, o = self.values(attention, layout.v, inputs)
        return replace(merged, v=v.weight, v_bias=v.bias, o=o)

    def signs(self, attention: Attention, grouping: Grouping, inputs: InputMoments) -> Tensor:
        """Signs of planes [G, P] that keep most of the heads in the mean of each group."""
        k, (a, b) = augmented(attention.projection("k")), attention.rotated_planes.T
        planes = torch.complex(k[:, a], k[:, b])  # [G, P, D + 1]
        products = torch.einsum("ipx,jpx->pij", inputs.times(planes), planes.conj()).real
        return aligned(products, grouping.members)

    def keys(self, attention: Attention, grouping: Grouping, inputs: InputMoments) -> Attention:
        """Layer with the shared K heads, and with q rotated and scaled to match."""
        k, q = augmented(attention.projection("k")), augmented(attention.projection("q"))
        rotary, (a, b) = attention.rotated_planes.flatten(), attention.rotated_planes.T
        unrotated = torch.tensor([i for i in range(k.shape[1]) if i not in set(rotary.tolist())], dtype=torch.long)
        merged = []
        for sources in map(list, grouping.members):
            members = k[sources]  # [S, d, D + 1]
            shared = torch.empty_like(members[0])
            if len(rotary):
                planes = torch.complex(members[:, a], members[:, b])  # [S, P, D + 1]
                turns = self.aligned_planes(torch.einsum("ipx,jpx->ijp", inputs.times(planes), planes.conj()))
                turned = (turns[..., None] * planes).mean(0)
                shared[a], shared[b] = turned.real, turned.imag
            if len(unrotated):
                rotations = self.aligned(_products(members[:, unrotated], inputs))
                shared[unrotated] = (rotations @ members[:, unrotated]).mean(0)
            scales = _norm(members, inputs) / _norm(shared, inputs).clamp_min(1e-30)
            for i, source in enumerate(sources):
                for reader in attention.readers_of(source):
                    if len(rotary):
                        turned = torch.complex(q[reader, a], q[reader, b]) * turns[i][:, None]
                        q[reader, a], q[reader, b] = turned.real, turned.imag
                    if len(unrotated):
                        q[reader, unrotated] = rotations[i] @ q[reader, unrotated]
                    q[reader] *= scales[i]
            merged.append(shared)
        new_k, k_bias = split(torch.stack(merged), attention.k_bias, attention.k)
        new_q, q_bias = split(q, attention.q_bias, attention.q)
        return replace(attention, k=new_k, k_bias=k_bias, q=new_q, q_bias=q_bias)

    def values(self, attention: Attention, grouping: Grouping, inputs: InputMoments) -> tuple[Projection, Tensor]:
        """Shared V heads, and o rotated back and scaled."""
        v, o = augmented(attention.projection("v")), attention.o.double().clone()
        merged = []
        for sources in map(list, grouping.members):
            members = v[sources]
            rotations = self.aligned(_products(members, inputs))
            shared = (rotations @ members).mean(0)
            scales = _norm(members, inputs) / _norm(shared, inputs).clamp_min(1e-30)
            for i, source in enumerate(sources):
                for reader in attention.readers_of(source):
                    o[:, reader] = o[:, reader] @ rotations[i].T * scales[i]
            merged.append(shared)
        new_v, v_bias = split(torch.stack(merged), attention.v_bias, attention.v)
        return Projection(new_v, v_bias), o.to(attention.o)

    def aligned(self, products: Tensor) -> Tensor:
        """Orthogonal rotations [S, d, d] that align the heads. products: [S, S, d, d], inner products of the heads'
        rows, [i, j] = W_i C W_j^T."""
        toward, best = products[0], 0.0  # [S, d, d]: the shared head with each; the first head leads the first round
        for _ in range(self.iterations):
            u, _, vh = torch.linalg.svd(toward)  # argmax over R of <R head, shared>
            rotations = u @ vh
            toward = (rotations[:, None] @ products).mean(0)
            new = float((toward * rotations).sum() / len(products))  # |mean of the rotated heads|^2
            if new <= best * (1 + self.gain) ** 2:
                break
            best = new
        return rotations

    def aligned_planes(self, products: Tensor) -> Tensor:
        """Unit factors [S, P] that align the heads. products: [S, S, P], complex, in each plane [i, j] = w_i C
        w_j^H."""
        toward, best = products[0], 0.0  # [S, P]
        for _ in range(self.iterations):
            size = toward.abs()
            turns = torch.where(size > 0, toward / size.clamp_min(1e-300), torch.ones_like(toward))
            toward = (turns[:, None] * products).mean(0)
            new = float((toward * turns.conj()).real.sum() / len(products))
            if new <= best * (1 + self.gain) ** 2:
                break
            best = new
        return turns


def _products(heads: Tensor, inputs: InputMoments) -> Tensor:
    """Inner products W_i C W_j^T [S, S, d, d]. heads: [S, d, D + 1]."""
    return torch.einsum("iax,jbx->ijab", inputs.times(heads), heads)


def _norm(heads: Tensor, inputs: InputMoments) -> Tensor:
    """Norm of each head's outputs [...]. heads: [..., d, D + 1]."""
    return energy(heads, inputs).clamp_min(0).sqrt()
