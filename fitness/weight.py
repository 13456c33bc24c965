"""QCQA's weight-sharing error (arXiv 2406.10247), from a Gram matrix of the heads' weights.

WSE(P) = sum over groups g, heads h in g of |W_K^h - mean_g W_K|^2 + |W_V^h - mean_g W_V|^2. It depends on the weights
only through <W_K^a, W_K^b> + <W_V^a, W_V^b>. The sum is over KV heads. In a model that already uses GQA this changes
nothing: query heads that share a KV head are at distance zero, and every KV head has the same number of them.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fitness.base import Fitness, kinds_of
from fitness.pairwise import PairwiseFitness
from grouper.attention import PARTS, Attention, Part
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging import MEAN
from grouper.merging.folding import augmented


@dataclass(frozen=True)
class Weight(Fitness):
    """Entry of QCQA's weight-sharing error. normalised: divide by the layer's energy tr G, so that layers are
    comparable; the paper's own error is not divided."""

    name: str = "weight"
    normalised: bool = True
    own_merge = "mean"
    paper = "QCQA, arXiv 2406.10247"
    needs_moments = False

    def tables(
        self, attention: Attention, inputs: InputMoments | None = None, part: str = "kv", device: str = "cpu"
    ) -> PairwiseFitness:
        """Tables of one layer; `distance` is 1 - cosine of the weights. part: "kv"; "k" or "v", whose errors add up to
        that of "kv"; or "q", which is divided by q's own energy."""
        kinds = kinds_of(part)
        counted = kinds if part == "q" else kinds_of("kv")  # counted in the energy
        grams = {kind: gram(attention, kind) for kind in counted}
        energy = float(sum(np.trace(grams[kind]) for kind in sorted(grams)))
        chosen = [grams[kind] for kind in kinds]
        scale = energy if self.normalised and energy > 0 else 1.0
        found = PairwiseFitness.from_gram(sum(chosen[1:], chosen[0]), scale, cosine_distance(chosen))
        found.of_k = PairwiseFitness.from_gram(grams["k"], scale) if part == "kv" else None
        return found

    def pairs(self, attention: Attention, inputs: InputMoments | None = None, part: str = "kv") -> PairwiseFitness:
        return self.tables(attention, inputs, part)

    def error_of_any_layout(
        self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None
    ) -> float:
        changed, energy = changes(attention, MEAN.merge(attention, layout), layout)
        if not self.normalised:
            return (changed["k"] + changed["v"]) / attention.queries_per_kv_head + changed["q"]
        kv = (changed["k"] + changed["v"]) / max(energy["k"] + energy["v"], 1e-300)
        return kv + changed["q"] / max(energy["q"], 1e-300)


def gram(attention: Attention, kind: Part, inputs: InputMoments | None = None) -> np.ndarray:
    """Inner products [G, G] of the weights of the q, k or v heads, biases included, in float64; with `inputs`, of the
    heads' outputs."""
    weights = augmented(attention.projection(kind))  # [G, d, D + 1]
    seen = _seen(weights, kind, inputs)
    return (seen.flatten(1) @ weights.flatten(1).T).numpy()


def cosine_distance(grams: list[np.ndarray]) -> np.ndarray:
    """1 - cosine of every two heads, averaged over the Gram matrices; 1 for a head of zeros."""
    cosines = []
    for table in grams:
        size = np.sqrt(np.diag(table))
        size = np.where(size > 0, size, 1)
        cosines.append(table / size[:, None] / size)
    return 1 - sum(cosines[1:], cosines[0]) / len(cosines)


def changes(
    before: Attention, merged: Attention, layout: LayerLayout, inputs: InputMoments | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Two dictionaries by "k", "v" and "q", summed over query heads: squared change of the weights by the merge, and
    squared norm of the weights before it. With `inputs`, the same of the projections' outputs.

    Where readers stay with their KV heads and the merge is the mean, change divided by energy is the fitness.
    """
    after = merged.expanded(layout)
    changed: dict[str, float] = {}
    energy: dict[str, float] = {}
    for kind in PARTS:
        old, new = (augmented(a.projection(kind)) for a in (before, after))
        old = old if kind == "q" else old[before.head_read]
        norms = []
        for weights in (old - new, old):
            norms.append(float((_seen(weights, kind, inputs) * weights).sum()))
        changed[kind], energy[kind] = norms
    return changed, energy


def _seen(weights: Tensor, kind: str, inputs: InputMoments | None) -> Tensor:
    """Weights [..., D + 1] of q, k or v times the second moment of their inputs; the weights themselves without
    `inputs`."""
    if inputs is None:
        return weights
    return weights @ (inputs.of_queries if kind == "q" else inputs).second_moment
