"""QCQA's weight-sharing error (arXiv 2406.10247), from a Gram matrix of the heads' weights.

WSE(P) = sum over groups g, heads h in g of |W_K^h - mean_g W_K|^2 + |W_V^h - mean_g W_V|^2. It depends on the weights only through
<W_K^a, W_K^b> + <W_V^a, W_V^b>. The sum is over KV heads: in a model that is GQA already, the query heads that share one are
at distance zero, and all KV heads have as many of them.
"""

import numpy as np
from torch import Tensor

from fitness.pairwise import PairwiseFitness
from grouper.attention import Attention, concatenated
from grouper.calibration import InputMoments


def gram(heads: Tensor) -> np.ndarray:
    """heads: [G, d, D]. Returns [G, G] inner products in float64."""
    rows = heads.flatten(1).double()
    return (rows @ rows.T).numpy()


def weight_fitness(attention: Attention, inputs: InputMoments | None = None, normalised: bool = True) -> PairwiseFitness:
    """One layer's weight-sharing error, biases included.

    normalised: divided by the layer's energy tr G, so that layers add up fairly; the paper's own is not.
    """
    table = gram(concatenated(attention.k, attention.k_bias)) + gram(concatenated(attention.v, attention.v_bias))
    energy = float(np.trace(table))
    return PairwiseFitness.from_gram(table, energy if normalised and energy > 0 else 1.0)
