"""The spectral merge of K where norms stand between the projections and RoPE: what is still free there, and the best head within that.

"head" (Qwen3, Gemma 3).  Each head is divided by its own size and scaled by gains that all heads share. Sizes are gone, and a rotation of a plane
    does not commute with two different gains: nothing is free. The best shared head is, per plane, the mean of the heads behind the norm,
    weighted by query energy: argmin of sum_h w_h |kappa_h - kappa|^2_C. Its own size is the norm's again, so its error is an estimate.
"all" (OLMo 2 and 3, OLMoE).  One size for all heads, and gains for each: q's gains take a real factor per plane and head. As without norms, with
    the real part of the Gram matrix in its place: kappa_h ~ c_h kappa, c_h real, from its leading eigenvector. The size, which changes with them,
    is restored in the mean by k's gains; from token to token it is approximate.
"""

import torch
from torch import Tensor

from grouper.layout import LayerLayout
from grouper.merging.folding import energy, readers_of, sizes, split


def weighted_mean(kappa: Tensor, weight: Tensor) -> Tensor:
    """kappa [S, P, X], weight [S, P]. Returns [P, X]."""
    total = weight.sum(0)
    share = torch.where(total > 0, weight / total.clamp_min(1e-300), 1 / len(weight))
    return (share[..., None] * kappa).sum(0)


def merge_keys(layer, layout: LayerLayout, rescale: bool) -> dict[str, Tensor | None]:
    """layer: a SpectralLayer. Returns the changed k, k_bias, k_norm and q_norm."""
    attention, a, b = layer.attention, *layer.planes.T
    q_norm = attention.q_norm.double().clone().to(layer.k.device)
    gains = attention.k_norm.double().to(layer.k.device)
    raw_size = sizes(layer.raw_k, layer.second, attention.qk_norm)  # [G, 1, 1]
    keys, new_gains = [], []
    for sources in map(list, layout.k.sources):
        if len(sources) == 1:
            new_gains.append(gains[sources[0]])
            keys.append(layer.raw_k[sources[0]])
            continue
        gain = (
            gains[sources].square().mean(0).sqrt() if attention.qk_norm == "all" else gains[sources[0]]
        )  # gains may differ in sign
        new_gains.append(gain)
        kappa, c = layer.merge_planes(sources)
        shared = torch.zeros_like(layer.k[0])
        shared[a], shared[b] = kappa.real, kappa.imag
        keys.append(
            torch.where(gain[:, None] != 0, shared / torch.where(gain != 0, gain, 1.0)[:, None], 0)
            * raw_size[sources].mean()
        )
        if attention.qk_norm == "all":
            factor = c.real
            if rescale:
                in_heads = c[..., None] * kappa
                seen = (in_heads @ layer.second.to(kappa.dtype) * in_heads.conj()).sum((1, 2)).real
                own = energy(layer.k[sources], layer.second)
                factor = factor * torch.where(seen > 0, (own / seen.clamp_min(1e-300)).sqrt(), 1.0)[:, None]
            for source, row in zip(sources, factor):
                q_norm[readers_of(attention, source)] *= _both_rows(row, a, b, q_norm.shape[1])
    k = torch.stack(keys)
    gain = torch.stack(new_gains)
    if attention.qk_norm == "all":
        gain = gain * sizes(k, layer.second, "all")[:, 0] / raw_size[0, 0]
    new_k, k_bias = split(k, attention.k_bias, attention.k)
    return {"k": new_k, "k_bias": k_bias, "k_norm": gain.to(attention.k_norm), "q_norm": q_norm.to(attention.q_norm)}


def _both_rows(factor: Tensor, a: Tensor, b: Tensor, head_dim: int) -> Tensor:
    """[P] -> [d]: each plane's factor at both of its rows."""
    rows = factor.new_ones(head_dim)
    rows[a], rows[b] = factor, factor
    return rows
