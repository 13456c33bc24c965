"""Spectral merge: the best shared head in closed form, as attention sees it.

Attention depends on V only through W_O W_V, and on K only through the score q.k, so the basis inside a head is free.
Under the inputs' second moment C:

V. Minimise over V and O'_h the sum over h of |(W_O^h W_V^h - O'_h V) C^(1/2)|^2. With W_O^h = Q_h R_h, A_h = R_h W_V^h
    and M = A C A^T stacked over the group, let U hold the d leading eigenvectors of M: V = U^T A, O'_h = Q_h U_h. The
    error is the sum of M's other eigenvalues.
K with RoPE. Rows of one plane are a complex row kappa_h, and complex factors commute with RoPE. Minimise the sum of w_h
    |kappa_h - c_h kappa|^2_C with w_h = |q_h|^2_C, plane by plane: with b_h = sqrt(w_h) kappa_h and u the leading
    eigenvector of the Hermitian b_a C b_b^H, kappa = sum_a conj(u_a) b_a and c_h = u_h / sqrt(w_h); q_h takes
    conj(c_h). The error is trace minus leading eigenvalue.
K without RoPE, or its unrotated part. Like V, with W_Q in place of W_O: L_h L_h^T = W_Q^h C W_Q^h^T, A_h = L_h^T
    W_K^h, W_Q'^h = U_h^T L_h^+ W_Q^h. A constant added to all keys cancels in softmax: the key side's C is centred and
    k's bias dropped.

If several query heads read a KV head of the original model, their W_O^T W_O, query energies and W_Q C W_Q^T are summed.
Biases are included as the weight of a constant input. If norms lie between projection and RoPE, K is merged by
grouper.merging.normed_keys. Everything is float64. Free phases and scales are fixed: the factor of the strongest head
is real and positive, K keeps its heads' mean energy, V and O share theirs evenly.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import Groups, LayerLayout
from grouper.merging.base import Merge
from grouper.merging.folding import check_readers_are_sources, energy, split
from grouper.merging.normed_keys import merge_normed_keys
from grouper.merging.plane_signs import with_signs
from grouper.merging.spectral_layer import SpectralLayer


@dataclass(frozen=True)
class Spectral(Merge):
    """Spectral merge. rescale: restore each head's K energy, because the projection shrinks it and attention would
    flatten. q_h is multiplied by sqrt(E|k_h|^2 / E|k'_h|^2), where k' is the shared head as head h sees it. Refinement
    starts without it.

    slow: number of the slowest planes, the last ones, that are merged as rows without RoPE. Within a window they hardly
    turn, so that their rows may mix, and a constant key cancels in softmax. Ignored under norms on q and k."""

    name: str = "spectral"
    rescale: bool = True
    slow: int = 0
    paper = "ours"
    expensive = True
    behind_norms: ClassVar[dict[str, str]] = {
        "head": "takes the weighted mean behind them, up to signs of planes",
        "all": "takes real factors of K's planes",
    }

    @property
    def key(self) -> dict[str, object]:
        return {name: value for name, value in super().key.items() if name != "slow" or value}

    def before_refinement(self) -> Merge:
        return replace(self, rescale=False)

    def merge(
        self, attention: Attention, layout: LayerLayout, inputs: InputMoments, device: str | torch.device = "cpu"
    ) -> Attention:
        """Merge a layer. Raises GrouperError if query heads would read heads that theirs are not merged into."""
        check_readers_are_sources(attention, layout, self.name)
        if self.slow > 0 and attention.planes is not None and attention.qk_norm is None:
            fast = max(0, len(attention.planes) - self.slow)
            without = replace(attention, planes=attention.planes[:fast] if fast else None)
            return replace(replace(self, slow=0).merge(without, layout, inputs, device), planes=attention.planes)
        layer = SpectralLayer(attention, inputs, device)
        if attention.qk_norm == "head":
            attention = with_signs(attention, layer.signs(layout.k.members))
            layer = SpectralLayer(attention, inputs, device)
        v, o = merged_values(layer, layout.v.members)
        new_v, v_bias = split(v, attention.v_bias, attention.v)
        gains = attention.gains
        if gains is not None:
            merged = merge_normed_keys(layer, gains, layout, self.rescale)
        else:
            k, q = merged_keys(layer, layout.k.members, self.rescale)
            new_q, q_bias = split(q.flatten(0, 1), attention.q_bias, attention.q)
            new_k, k_bias = split(k, attention.k_bias, attention.k)
            merged = replace(attention, q=new_q, q_bias=q_bias, k=new_k, k_bias=k_bias)
        new_o = o.flatten(0, 1).permute(1, 0, 2).to(attention.o)  # [D, H, d]
        return replace(merged, v=new_v, v_bias=v_bias, o=new_o)


def merged_values(layer: SpectralLayer, groups: Groups) -> tuple[Tensor, Tensor]:
    """Shared V heads [groups, d, D + 1], and o [G, queries, D, d] by the original KV head that is read."""
    o = layer.o.clone()
    merged = []
    for sources in map(list, groups):
        if len(sources) == 1:  # a single member stays as it was, bit for bit
            merged.append(layer.v[sources[0]])
            continue
        shared, o[sources] = layer.shared_v(sources)
        merged.append(shared)
    return torch.stack(merged), o


def merged_keys(layer: SpectralLayer, groups: Groups, rescale: bool) -> tuple[Tensor, Tensor]:
    """Shared K heads [groups, d, D + 1], and q [G, queries, d, D + 1] by the original KV head that is read."""
    q = layer.q.clone()
    merged = []
    for sources in map(list, groups):
        if len(sources) == 1:
            merged.append(layer.k[sources[0]])
            continue
        shared = torch.zeros_like(layer.k[0])
        rows = layer.q[sources]  # [S, queries, d, D + 1], a copy
        seen = layer.k.new_zeros(len(sources))  # E|k'|^2 as each head sees it
        if len(layer.planes):
            a, b = layer.planes.T
            kappa, c = layer.shared_planes(sources)
            shared[a], shared[b] = kappa.real, kappa.imag
            turned = torch.complex(rows[:, :, a], rows[:, :, b]) * c.conj()[:, None, :, None]
            rows[:, :, a], rows[:, :, b] = turned.real, turned.imag
            seen += energy(c[..., None] * kappa, layer.inputs)
        if len(layer.unrotated):
            unrotated, fold = layer.shared_unrotated(sources)
            shared[layer.unrotated] = unrotated
            rows[:, :, layer.unrotated] = fold[:, None] @ rows[:, :, layer.unrotated]
            # in the head's own basis: fold^T takes the shared rows back, because scores are q . k
            seen += energy(fold.transpose(1, 2) @ unrotated, layer.centred)
        if rescale:
            scale = torch.where(seen > 0, (layer.key_energy(sources) / seen.clamp_min(1e-300)).sqrt(), 1.0)
            rows = rows * scale[:, None, None, None]
        q[sources] = rows
        merged.append(shared)
    return torch.stack(merged), q
