"""Lower bounds on a layer's error: how little is lost at the same bytes if RoPE did not tie rows to planes, and if a
cache were shared by all heads of the layer. docs/bounds.md derives them.

A shared head caches d numbers per token, z = Z x. Under RoPE plane j of head h is read from plane j of z alone, times a
complex factor. Without that constraint a reader may take any linear map T_h of z, and rotate then. With the rows
    B_h = sqrt(w_hj) W_K^h (both rows of plane j; w_hj: query energy of the plane)
the error is the sum over heads of |B_h - T_h Z|^2_C, and its minimum over all T and Z is the sum of the eigenvalues of
B C B^T beyond the d largest (Eckart and Young). If the cache belongs to the whole layer, G' heads of d rows are read by
any head, and the eigenvalues beyond the G' d largest are left. V has the same form with B_h = R_h W_V^h, and no
constraint to begin with: the spectral merge is its minimum within a group.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fitness.spectral import SpectralFitness, blocks
from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging.leading import beyond_leading
from grouper.merging.spectral_layer import SpectralLayer, gram_of


@dataclass(frozen=True)
class Bounds:
    """Errors of a layer under a layout, relative to the energies of K and V. k: the best shared K heads under RoPE,
    plane by plane; k_group: any linear maps within the groups; k_layer: any linear maps, one cache for all heads. v:
    the best shared V heads, which is also the bound within groups; v_layer: one cache for all heads."""

    k: float
    k_group: float
    k_layer: float
    v: float
    v_layer: float


class LayerBounds:
    """Bounds of one layer for any of its layouts. device: where eigenvalues are computed."""

    def __init__(self, attention: Attention, inputs: InputMoments, device: str = "cpu"):
        layer = SpectralLayer(attention, inputs, device)
        self.exact, self.d = SpectralFitness(layer.tables(), layer.d), layer.d
        self.keys, self.values = joint_keys(layer), self.exact.tables.v
        self._known: dict[tuple[str, tuple[int, ...]], float] = {}

    def of(self, layout: LayerLayout) -> Bounds:
        """Bounds of a layout that groups K and V alike."""
        groups, exact = [tuple(sorted(members)) for members in layout.k.members], self.exact
        k, k_group, v = (sum(self._left(kind, group, 1) for group in groups) for kind in ("planes", "k", "v"))
        k_layer, v_layer = (self._left(kind, tuple(range(exact.heads)), len(groups)) for kind in ("k", "v"))
        k, k_group, k_layer = (error / exact.k_energy for error in (k, k_group, k_layer))
        return Bounds(k, k_group, k_layer, v / exact.v_energy, v_layer / exact.v_energy)

    def _left(self, kind: str, heads: tuple[int, ...], kept: int) -> float:
        """Error of these heads if they share the numbers of `kept` heads (1 for a group); "planes": under RoPE."""
        if len(heads) == kept:
            return 0.0
        if len(heads) == self.exact.heads and kind != "planes":
            return float(self._spectra[kind][: -kept * self.d].sum())
        if (kind, heads) not in self._known:
            index = torch.tensor([heads], device=self.keys.device)
            if kind == "planes":
                found = self.exact.k_errors(index)
            else:
                found = beyond_leading(blocks(self.keys if kind == "k" else self.values, index, self.d), self.d)
            self._known[kind, heads] = float(found)
        return self._known[kind, heads]

    @cached_property
    def _spectra(self) -> dict[str, Tensor]:
        """Eigenvalues [G d] of all heads together, ascending."""
        return {kind: torch.linalg.eigvalsh(gram).clamp_min(0) for kind, gram in (("k", self.keys), ("v", self.values))}


def joint_keys(layer: SpectralLayer) -> Tensor:
    """Gram matrix B C B^T [G d, G d] of a layer's weighted K rows. With a partial rotary all rows take the centred C of
    the unrotated ones: that is never more than C, so that the bound stays one."""
    rows = layer.k.new_zeros(layer.k.shape)  # [G, d, D + 1]
    if len(layer.planes):
        weight = 0.5 if len(layer.unrotated) else 1.0  # as in the tables: a phase-averaged square
        for side in layer.planes.T:
            rows[:, side] = (weight * layer.q_energy).sqrt()[..., None] * layer.k[:, side]
    if len(layer.unrotated):
        rows[:, layer.unrotated] = layer.a_k
    return gram_of(rows.flatten(0, 1), layer.centred if len(layer.unrotated) else layer.inputs)
