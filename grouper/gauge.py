"""Keys and values that caches of few bits round less: the same model in another gauge.

Both rows of a RoPE plane of a KV head may be divided by a number s, and the rows of all its readers' queries multiplied
by it: K' = K / s, Q' = Q s, biases too. RoPE commutes with that, so no score changes. Rows that RoPE leaves alone have
a number each. V' = V t, and the columns of o of its readers are divided by t. Here all numbers are powers of two, which
weights in bfloat16 or float16 take without rounding: not a bit of any score changes.

Why it helps: a block's largest value sets the steps of all its values. Where one plane of a head is far larger than
the others (Qwen2's biases on k), rounding loses the others. Dividing it, and multiplying q, moves the error to where
scores feel it least.

s = (size of the plane's keys / size of its readers' queries) to the power of `strength` / 2, by root mean squares. If
the error were spread evenly over a head, as a rotation does, it would be sum (k / s)^2 times sum (q s)^2, and by
Cauchy-Schwarz least at strength 1. Each KV head takes the strength under which rounding to 4 bits changes scores
least, 0 where none changes them less by MARGIN. Keys and queries are drawn from the moments of what enters them, at
random positions. K and V take one more number for the whole head where that rounds them less in e4m3, whose middle it
brings them to: for caches of fp8 with scale 1.0.

Norms on q and k: across heads (OLMo 2) gains are per head, and take s in place of the weights. Per head (Qwen3,
Gemma 3) all heads have the same gains: one s per plane for all heads is free there, but is not used, and K stays.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grouper.attention import Attention, Merged, MergedLayer, readers_index
from grouper.calibration.input_moments import InputMoments
from grouper.families.architecture import Architecture
from grouper.families.configuration import decoder_config
from grouper.gauge_drawn import Drawn
from grouper.layout import HeadLayout, LayerLayout

Moments = Callable[[int], InputMoments]


@dataclass(frozen=True)
class Gauge:
    """k: [G, d] what keys are divided by. v: [G] what values are multiplied by. strengths: [G] of K."""

    k: Tensor
    v: Tensor
    strengths: list[float]

    @property
    def changes(self) -> bool:
        return bool((self.k != 1).any() or (self.v != 1).any())


def gauged(attention: Attention, layout: LayerLayout, gauge: Gauge) -> Attention:
    """The same attention with other keys, queries, values and outputs: what it computes does not change."""
    k_of, v_of = (readers_index(grouping, attention.o.device) for grouping in (layout.k, layout.v))
    k, v = gauge.k.to(attention.k), gauge.v.to(attention.v)  # [G, d], [G]
    q, keys, values = (attention.projection(part) for part in ("q", "k", "v"))
    if attention.gains is None:
        q = replace(q, weight=q.weight * k[k_of][..., None], bias=None if q.bias is None else q.bias * k[k_of])
        keys = replace(keys, weight=keys.weight / k[..., None], bias=None if keys.bias is None else keys.bias / k)
    else:
        q, keys = replace(q, gain=attention.gains.q * k[k_of]), replace(keys, gain=attention.gains.k / k)
    values = values.changed(lambda heads: heads * v.view(-1, *[1] * (heads.ndim - 1)))
    changed = attention.with_projections({"q": q, "k": keys, "v": values})
    return replace(changed, o=attention.o / v[v_of][None, :, None])


class GaugedLayers:
    """Merged layers in the gauge that rounds them least; each layer's is found once, when it is asked for.

    moments_of: of what enters a layer. gauges: those found so far.
    """

    def __init__(
        self, architecture: Architecture, config: dict, layout: HeadLayout, merged: Merged, moments_of: Moments
    ):
        self.architecture, self.layout, self.merged, self.moments_of = architecture, layout, merged, moments_of
        self.theta, self.gauges = theta_of(config), dict[int, Gauge]()
        self.free = not architecture.family.encodes and not decoder_config(config).get("clip_qkv")

    def __call__(self, layer: int) -> MergedLayer:
        found, layout = self.merged(layer), self.layout.layers[layer]
        if not self.free or layout.q is not None:  # clipped, or queries shared by readers of several KV heads
            return found
        if layer not in self.gauges:
            self.gauges[layer] = best_gauge(found.attention, layout, self.moments_of(layer), self.theta)
        gauge = self.gauges[layer]
        return replace(found, attention=gauged(found.attention, layout, gauge)) if gauge.changes else found


def theta_of(config: dict) -> float:
    """The base of RoPE's frequencies; what they are exactly matters little here."""
    text = decoder_config(config)
    rope = text.get("rope_parameters") or {}
    found = rope.get("rope_theta") or text.get("rope_theta") or 10000.0
    return float(found)


def best_gauge(attention: Attention, layout: LayerLayout, inputs: InputMoments, theta: float) -> Gauge:
    """The gauge of one layer. theta: base of RoPE's frequencies."""
    attention = attention.to("cpu", torch.float32)
    drawn = Drawn(attention, layout, inputs.to("cpu"), theta)
    fixed = attention.qk_norm == "head"  # gains are the same in all heads
    unscaled = 0.0, torch.ones(attention.head_dim)
    best = [unscaled if fixed else drawn.best(head) for head in range(len(attention.k))]
    values = torch.stack([drawn.best_value(head) for head in range(len(attention.v))])
    return Gauge(torch.stack([scale for _, scale in best]), values, [strength for strength, _ in best])
