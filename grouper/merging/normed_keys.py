"""Spectral merge of K if norms lie between the projections and RoPE: the remaining freedom, and the best head within
it.

"head" (Qwen3, Gemma 3). Each head is divided by its own size and scaled by gains that all heads share. This removes
    sizes, and a rotation of a plane does not commute with two different gains. Only signs of planes remain free; they
    are chosen before this step (grouper.merging.plane_signs). The best shared head is, per plane, the mean of the heads
    after the norm, weighted by query energy: argmin of sum_h w_h |kappa_h - kappa|^2_C. The norm rescales the shared
    head, so its error is an estimate.
"all" (OLMo 2 and 3, OLMoE). One size for all heads, and separate gains: q's gains take a real factor per plane and
    head. The merge is that without norms, with the real part of the Gram matrix: kappa_h ~ c_h kappa, c_h real, from
    its leading eigenvector. The common size changes with the heads. Gains of k restore it on average; for a single
    token it is approximate.
"""

from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention, Gains
from grouper.layout import LayerLayout
from grouper.merging.folding import energy, sizes, split
from grouper.merging.spectral_layer import SpectralLayer


def merge_normed_keys(layer: SpectralLayer, norms: Gains, layout: LayerLayout, rescale: bool) -> Attention:
    """Layer with changed k, k_bias, k_norm and q_norm."""
    attention, across_heads = layer.attention, norms.kind == "all"
    q_norm = norms.q.double().clone().to(layer.k.device)
    gains = norms.k.double().to(layer.k.device)
    raw_size = sizes(layer.raw_k, layer.inputs, norms.kind)  # [G, 1, 1]
    keys, new_gains = [], []
    for sources in map(list, layout.k.members):
        if len(sources) == 1:
            new_gains.append(gains[sources[0]])
            keys.append(layer.raw_k[sources[0]])
            continue
        gain = gains[sources].square().mean(0).sqrt() if across_heads else gains[sources[0]]  # signs may differ
        kappa, c = layer.shared_planes(sources)
        keys.append(_before_the_gain(layer, kappa, gain) * raw_size[sources].mean())
        new_gains.append(gain)
        if across_heads:
            factors = _rescaled(layer, sources, kappa, c) if rescale else c.real
            for source, factor in zip(sources, factors):
                q_norm[attention.readers_of(source)] *= _both_rows(layer, factor)
    k, gain = torch.stack(keys), torch.stack(new_gains)
    if across_heads:
        gain = gain * sizes(k, layer.inputs, "all")[:, 0] / raw_size[0, 0]
    new_k, k_bias = split(k, attention.k_bias, attention.k)
    return replace(attention, k=new_k, k_bias=k_bias, k_norm=gain.to(norms.k), q_norm=q_norm.to(norms.q))


def _before_the_gain(layer: SpectralLayer, kappa: Tensor, gain: Tensor) -> Tensor:
    """Rows [d, D + 1] from which the norm's gain [d] makes the planes kappa [P, D + 1]."""
    a, b = layer.planes.T
    shared = torch.zeros_like(layer.k[0])
    shared[a], shared[b] = kappa.real, kappa.imag
    return torch.where(gain[:, None] != 0, shared / torch.where(gain != 0, gain, 1.0)[:, None], 0)


def _rescaled(layer: SpectralLayer, sources: list[int], kappa: Tensor, c: Tensor) -> Tensor:
    """Real factors [S, P], scaled so that each head keeps its K energy."""
    seen = energy(c[..., None] * kappa, layer.inputs)
    own = energy(layer.k[sources], layer.inputs)
    return c.real * torch.where(seen > 0, (own / seen.clamp_min(1e-300)).sqrt(), 1.0)[:, None]


def _both_rows(layer: SpectralLayer, factor: Tensor) -> Tensor:
    """Factor of each plane at both of its rows: [P] -> [d]."""
    a, b = layer.planes.T
    rows = factor.new_ones(layer.d)
    rows[a], rows[b] = factor, factor
    return rows
