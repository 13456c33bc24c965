"""Samples of keys, queries and values that follow the moments of a layer's inputs, and the scales under which low-bit
caches change them least. grouper.gauge chooses by these scales."""

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.cache_types import fp8, q4_0, quanto4
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging.folding import augmented, scored

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
MARGIN = 0.75  # largest error of an accepted scale, relative to the error without it
DRAWN = 256  # samples of keys, queries and values per head, to estimate errors from
FURTHEST = 2.0**8
LONGEST = 4096  # largest random position
MIDDLE = 2.0  # root mean square with equal room above and below in fp8


def power_of_two(scale: Tensor) -> Tensor:
    """Nearest power of two, by ratio.

    >>> power_of_two(torch.tensor([0.7, 0.75, 3.0])).tolist()
    [0.5, 1.0, 4.0]
    """
    return torch.exp2(torch.log2(scale).round())


class Drawn:
    """Keys, queries and values of one layer, drawn at random positions from the moments of its inputs.

    units: [d] number of the plane that a row belongs to; a row without RoPE has a number of its own.
    """

    def __init__(self, attention: Attention, layout: LayerLayout, inputs: InputMoments, theta: float, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        self.planes, d = attention.rotated_planes, attention.head_dim
        q, k = scored(attention.to("cpu"), inputs)  # [H, d, D + 1], [G, d, D + 1]
        self.k_of = torch.from_numpy(layout.k.group_of)
        self.units = torch.arange(d)
        if len(self.planes):
            self.units[self.planes[:, 1]] = self.planes[:, 0]
        speeds = theta ** (-torch.arange(len(self.planes)) / max(1, len(self.planes)))
        self.speeds = speeds
        self.k = torch.stack([self._turned(self._drawn(head, inputs)) for head in k])  # [G, n, d]
        self.q = torch.stack([self._turned(self._drawn(head, inputs)) for head in q])  # [H, n, d]
        self.v = torch.stack([self._drawn(head, inputs) for head in augmented(attention.projection("v"))])

    def _drawn(self, weights: Tensor, inputs: InputMoments) -> Tensor:
        """Normally distributed samples [n, d] of one head's keys, queries or values before RoPE. weights: [d, D + 1]
        with the bias in the last column."""
        products = inputs.times(weights)  # [d, D + 1]
        second, mean = products @ weights.T, products[:, -1]  # the last input is the constant 1
        values, vectors = torch.linalg.eigh(second - torch.outer(mean, mean))
        root = values.clamp_min(0).sqrt()[:, None] * vectors.T
        return mean.float() + torch.randn(DRAWN, len(mean), generator=self.generator) @ root.float()

    def _turned(self, drawn: Tensor) -> Tensor:
        """Samples after RoPE [n, d]."""
        a, b = self.planes.T
        places = torch.randint(LONGEST, (DRAWN, 1), generator=self.generator)
        turn = torch.exp(1j * places * self.speeds)  # [n, P]
        turned = torch.complex(drawn[:, a], drawn[:, b]) * turn
        drawn[:, a], drawn[:, b] = turned.real, turned.imag
        return drawn

    def size(self, drawn: Tensor) -> Tensor:
        """Root mean square of each row's unit [d], of samples [..., d]."""
        square = drawn.flatten(0, -2).square().mean(0)
        total = torch.zeros_like(square).index_add(0, self.units, square)
        return total[self.units].clamp_min(1e-30).sqrt()

    def errors(self, head: int, scale: Tensor) -> Tensor:
        """Mean square change of scores by 4-bit rounding [ways], for two ways of rounding. scale: [d]. A part common to
        all keys does not change the softmax, and is removed."""
        queries = self.q[self.k_of == head].flatten(0, 1) * scale  # [readers n, d]
        moment, keys = queries.T @ queries / len(queries), self.k[head] / scale
        ways = (q4_0, quanto4) if len(scale) % 32 == 0 else (quanto4,)
        wrong = torch.stack([rounded(keys[:, None], "k")[:, 0] for rounded in ways]) - keys
        wrong = wrong - wrong.mean(1, keepdim=True)  # [ways, n, d]
        return ((wrong @ moment) * wrong).sum(-1).mean(-1)

    def scale_of(self, head: int, strength: float) -> Tensor:
        """Scale for this strength: powers of two [d] around a geometric mean of 1, clamped to [1 / FURTHEST,
        FURTHEST]."""
        ratio = self.size(self.k[head]) / self.size(self.q[self.k_of == head])
        scale = ratio ** (strength / 2)
        return power_of_two((scale / scale.log().mean().exp()).clamp(1 / FURTHEST, FURTHEST))

    def best(self, head: int) -> tuple[float, Tensor]:
        """Strength that changes scores least, averaged over the ways of rounding, and makes none of them worse; with
        its scale [d]."""
        without = self.errors(head, torch.ones(self.k.shape[-1])).clamp_min(1e-30)
        shares = {s: self.errors(head, self.scale_of(head, s)) / without for s in STRENGTHS}
        errors = {s: float(share.mean()) for s, share in shares.items() if s == 0 or (share <= 1).all()}
        strength = min(errors, key=lambda s: errors[s])
        strength = strength if errors[strength] < MARGIN else 0.0
        scale = self.scale_of(head, strength)
        return strength, scale / best_number(self.k[head] / scale)

    def best_value(self, head: int) -> Tensor:
        """Factor of this head's values, a scalar tensor []."""
        return best_number(self.v[head])


def best_number(drawn: Tensor) -> Tensor:
    """Power of two, as a scalar tensor [], that moves keys or values [n, d] of a head to the middle of e4m3's range; 1
    if that does not reduce their rounding."""
    number = power_of_two(MIDDLE / drawn.square().mean().sqrt().clamp_min(1e-30))
    without, within = ((fp8(drawn * n, "v") / n - drawn).square().mean() for n in (1.0, number))
    return number if within < MARGIN * without else torch.ones_like(number)
