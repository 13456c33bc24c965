"""Distances of heads by what they give on text: AsymGQA's (arXiv 2406.14963), as a fitness.

The distance of two heads is 1 - cosine of their k_proj (or v_proj) outputs over calibration text; one grouping for both takes the mean of the two.
Inner products of outputs are <W_a, W_b>_C = tr(W_a C W_b^T), so the inputs' second moment is all that is needed. As a fitness, a group costs
the sum of squares around its mean of the heads scaled to length one, K and V alike: the same Gram machinery as the weight-sharing error.
"""

import numpy as np
from torch import Tensor

from fitness.pairwise import PairwiseFitness
from grouper.attention import Attention
from grouper.calibration import InputMoments
from grouper.merging.folding import augmented


def activation_fitness(attention: Attention, inputs: InputMoments) -> PairwiseFitness:
    """One layer; `pairs` is the distance of every two heads, mean of K's and V's."""
    cosines = (cosine(augmented(w, b), inputs.second) for w, b in ((attention.k, attention.k_bias), (attention.v, attention.v_bias)))
    return PairwiseFitness.from_gram(sum(cosines) / 2)


def cosine(heads: Tensor, second: Tensor) -> np.ndarray:
    """heads [G, d, D + 1]. Returns [G, G]: cosines of their outputs, flattened over tokens; 0 for a head that gives nothing."""
    gram = np.einsum("adx,bdx->ab", (heads @ second).numpy(), heads.numpy())
    size = np.sqrt(np.diag(gram))
    return gram / np.where(size > 0, size, 1)[:, None] / np.where(size > 0, size, 1)
