"""Error of any merge by the spectral fitness's measure, so that layouts without a closed-form merge can be compared
with the others.

V: sum over query heads of |(W_O W_V - W_O' W_V') C^(1/2)|^2. K: the squared change of the scores, averaged over phases
in each RoPE plane. Each is divided by its energy. For the spectral merge of a layout the result equals
`SpectralFitness`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging.folding import augmented, scored

Pair = tuple[Tensor, Tensor]  # before and after


def calibrated_errors(
    before: Attention, merged: Attention, layout: LayerLayout, inputs: InputMoments
) -> tuple[float, float]:
    """(K error, V error), relative to the energies. before: the original layer; merged: the layer with the layout's
    heads."""
    after = merged.expanded(layout)
    was, now = scored(before, inputs), scored(merged, inputs)
    new_q = torch.arange(len(before.q)) if layout.q is None else torch.from_numpy(layout.q.group_of)
    new_k, kv = torch.from_numpy(layout.k.group_of), before.head_read
    q, k = (was[0], now[0][new_q]), (was[1][kv], now[1][new_k])  # [H, d, D + 1] before and after
    v = (augmented(before.projection("v"))[kv], augmented(after.projection("v")))
    o, new_o = (a.o.double().permute(1, 2, 0) for a in (before, after))  # [H, d, D]
    v_error, v_energy = _product_change((o, new_o), v, None, inputs)
    k_error = k_energy = 0.0
    d = before.head_dim
    rotary = before.rotated_planes.flatten().tolist()
    if rotary:
        a, b = before.rotated_planes.T
        weight = 0.5 if len(rotary) < d else 1.0
        q_planes, k_planes = (_on(lambda x: torch.complex(x[:, a], x[:, b])[:, :, None], pair) for pair in (q, k))
        error, energy = _product_change(q_planes, k_planes, inputs.of_queries, inputs)  # [H, P, 1, D + 1]
        k_error, k_energy = weight * error, weight * energy
    unrotated = [i for i in range(d) if i not in set(rotary)]
    if unrotated:
        q_rows, k_rows = (_on(lambda x: x[:, unrotated], pair) for pair in (q, k))
        error, energy = _product_change(q_rows, k_rows, inputs.of_queries, inputs.centred())
        k_error, k_energy = k_error + error, k_energy + energy
    return k_error / max(k_energy, 1e-300), v_error / max(v_energy, 1e-300)


def _on(change: Callable[[Tensor], Tensor], pair: Pair) -> Pair:
    return change(pair[0]), change(pair[1])


def _product_change(left: Pair, right: Pair, metric: InputMoments | None, inputs: InputMoments) -> tuple[float, float]:
    """|A^H B - A'^H B'|^2 and |A^H B|^2, summed. left: A [..., f, X] before and after; right: B [..., f, Y] before and
    after. X is measured by `metric` (identity if None), Y by `inputs`."""

    def inner(i: int, j: int) -> float:
        x = left[i] if metric is None else metric.times(left[i])
        y = inputs.times(right[i])
        over_x = x @ left[j].mH  # [..., f, f]
        over_y = y @ right[j].mH
        return float((over_x.conj() * over_y).sum().real)

    energy = inner(0, 0)
    return max(energy + inner(1, 1) - 2 * inner(0, 1), 0.0), energy
