"""The weight-sharing error of what heads give on text, and AsymGQA's distances (arXiv 2406.14963).

Inner products of outputs over calibration text are <W_a, W_b>_C = tr(W_a C W_b^T), so the inputs' second moment is all that is needed: the error
is QCQA's under C, through the same Gram machinery, K's and V's each over its energy (keys are far larger than values, and would
be all that counts). The distance of two heads is 1 - cosine of their k_proj (or v_proj) outputs; one grouping for both takes the mean.
"""

import numpy as np

from fitness.pairwise import PairwiseFitness
from fitness.weight import PARTS, cosine_distance, gram
from grouper.attention import Attention
from grouper.calibration.moments import InputMoments


def activation_fitness(
    attention: Attention, inputs: InputMoments, part: str = "kv", device: str = "cpu"
) -> PairwiseFitness:
    """One layer. part: "kv", or "k" or "v" alone, which add up to that, or "q"."""
    grams = [gram(attention, kind, inputs.second) for kind in PARTS[part]]
    return PairwiseFitness.from_gram(
        sum(g / max(float(np.trace(g)), 1e-300) for g in grams), distance=cosine_distance(grams)
    )
