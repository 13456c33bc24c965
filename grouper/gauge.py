"""Gauge of keys and values: the same model with keys and values scaled so that low-bit KV caches round them less.

Both rows of a RoPE plane of a KV head may be divided by a number s, if the same rows of all its readers' queries are
multiplied by it: K' = K / s, Q' = Q s, biases too. RoPE commutes with this scaling, so no score changes. Rows without
RoPE have one number each. Likewise V' = V t, and the columns of o of the readers are divided by t. All numbers are
powers of two, which bfloat16 and float16 weights take without rounding, so that not a bit of any score changes.

Reason: the largest value of a block sets the rounding steps of all its values. If one plane of a head is far larger
than the others (Qwen2's biases on k), rounding loses the others. Dividing that plane, and multiplying q, moves the
error to where scores feel it least.

s = (size of the plane's keys / size of its readers' queries) to the power of `strength` / 2, sizes being root mean
squares. If the error were spread evenly over a head, as by a rotation, it would be sum (k / s)^2 times sum (q s)^2,
which by Cauchy-Schwarz is least at strength 1. Each KV head takes the strength under which 4-bit rounding changes
scores least, or 0 if no strength reduces the change below MARGIN times that of strength 0. Keys and queries are drawn
from the moments of the layer's inputs, at random positions. K and V get one more number for the whole head if it
reduces rounding in e4m3: it moves their size to the middle of e4m3's range, for fp8 caches with scale 1.0.

Norms on q and k: if a norm spans all heads (OLMo 2), gains are per head, and take s in place of the weights. If norms
are per head (Qwen3, Gemma 3), all heads share the same gains. One s per plane for all heads would be free there, but is
not used, and K stays.
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
    """Gauge of one layer. k: [G, d] divisors of keys. v: [G] factors of values. strengths: [G] of K."""

    k: Tensor
    v: Tensor
    strengths: list[float]

    @property
    def changes(self) -> bool:
        return bool((self.k != 1).any() or (self.v != 1).any())


def gauged(attention: Attention, layout: LayerLayout, gauge: Gauge) -> Attention:
    """Attention with scaled keys, queries, values and outputs. Its result does not change."""
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
    """Merged layers in the gauge that rounds them least; each layer's is found once, when it is requested.

    moments_of: moments of a layer's inputs. gauges: those found so far.
    """

    def __init__(
        self, architecture: Architecture, config: dict, layout: HeadLayout, merged: Merged, moments_of: Moments
    ):
        self.architecture, self.layout, self.merged, self.moments_of = architecture, layout, merged, moments_of
        self.theta, self.gauges = theta_of(config), dict[int, Gauge]()
        self.free = not architecture.family.encodes and not decoder_config(config).get("clip_qkv")

    def __call__(self, layer: int) -> MergedLayer:
        found, layout = self.merged(layer), self.layout.layers[layer]
        if not self.free or layout.q is not None:  # clipped values, or queries shared by readers of several KV heads
            return found
        if layer not in self.gauges:
            self.gauges[layer] = best_gauge(found.attention, layout, self.moments_of(layer), self.theta)
        gauge = self.gauges[layer]
        return replace(found, attention=gauged(found.attention, layout, gauge)) if gauge.changes else found


def theta_of(config: dict) -> float:
    """Base of RoPE's frequencies. Its exact value matters little here."""
    text = decoder_config(config)
    rope = text.get("rope_parameters") or {}
    found = rope.get("rope_theta") or text.get("rope_theta") or 10000.0
    return float(found)


def best_gauge(attention: Attention, layout: LayerLayout, inputs: InputMoments, theta: float) -> Gauge:
    """Best gauge of one layer. theta: base of RoPE's frequencies."""
    attention = attention.to("cpu", torch.float32)
    drawn = Drawn(attention, layout, inputs.to("cpu"), theta)
    fixed = attention.qk_norm == "head"  # all heads share the same gains
    unscaled = 0.0, torch.ones(attention.head_dim)
    best = [unscaled if fixed else drawn.best(head) for head in range(len(attention.k))]
    values = torch.stack([drawn.best_value(head) for head in range(len(attention.v))])
    return Gauge(torch.stack([scale for _, scale in best]), values, [strength for strength, _ in best])
