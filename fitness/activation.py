"""Weight-sharing error of the heads' outputs on text, and AsymGQA's distances (arXiv 2406.14963).

Inner products of outputs over calibration text are <W_a, W_b>_C = tr(W_a C W_b^T), where C is the inputs' second
moment; nothing else of the text is needed. The error is QCQA's under C, from the same Gram matrices. K's and V's errors
are each divided by their energy, because keys are far larger than values and would outweigh them. The distance of two
heads is 1 - cosine of their k_proj (or v_proj) outputs; one grouping for both takes the mean.
"""

from dataclasses import dataclass

import numpy as np

from fitness.base import Fitness, kinds_of
from fitness.pairwise import PairwiseFitness
from fitness.weight import changes, cosine_distance, gram
from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging import MEAN


@dataclass(frozen=True)
class Activation(Fitness):
    name: str = "activation"
    own_merge = "mean"
    paper = "AsymGQA, arXiv 2406.14963"

    def tables(
        self, attention: Attention, inputs: InputMoments | None, part: str = "kv", device: str = "cpu"
    ) -> PairwiseFitness:
        """Tables of one layer. part: "kv"; "k" or "v", whose errors add up to that of "kv"; or "q"."""
        grams = [gram(attention, kind, self.given(inputs)) for kind in kinds_of(part)]
        shares = [g / max(float(np.trace(g)), 1e-300) for g in grams]
        found = PairwiseFitness.from_gram(np.sum(shares, axis=0), distance=cosine_distance(grams))
        found.of_k = PairwiseFitness.from_gram(shares[0]) if part == "kv" else None
        return found

    def pairs(self, attention: Attention, inputs: InputMoments | None, part: str = "kv") -> PairwiseFitness:
        return self.tables(attention, inputs, part)

    def error_of_any_layout(self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None) -> float:
        changed, energy = changes(attention, MEAN.merge(attention, layout), layout, self.given(inputs))
        return sum(changed[kind] / max(energy[kind], 1e-300) for kind in changed)
