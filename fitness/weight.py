"""QCQA's weight-sharing error (arXiv 2406.10247), from a Gram matrix of the heads' weights.

WSE(P) = sum over groups g, heads h in g of |W_K^h - mean_g W_K|^2 + |W_V^h - mean_g W_V|^2. It depends on the weights only through
<W_K^a, W_K^b> + <W_V^a, W_V^b>. The sum is over KV heads: in a model that is GQA already, the query heads that share one are
at distance zero, and all KV heads have as many of them.
"""

import numpy as np
import torch
from torch import Tensor

from fitness.pairwise import PairwiseFitness
from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.merging.folding import augmented

PARTS = {"kv": ("k", "v"), "k": ("k",), "v": ("v",), "q": ("q",)}


def gram(attention: Attention, kind: str, second: Tensor | None = None) -> np.ndarray:
    """[heads, heads] float64: inner products of the q, k or v heads' weights, biases included; under `second`, of their outputs."""
    heads = augmented(getattr(attention, kind), getattr(attention, f"{kind}_bias"))  # [heads, d, D + 1]
    seen = heads if second is None else heads @ second
    return (seen.flatten(1) @ heads.flatten(1).T).numpy()


def cosine_distance(grams: list[np.ndarray]) -> np.ndarray:
    """1 - cosine of every two heads, mean over the Gram matrices; 1 for a head that is zero."""
    cosines = []
    for table in grams:
        size = np.sqrt(np.diag(table))
        size = np.where(size > 0, size, 1)
        cosines.append(table / size[:, None] / size)
    return 1 - sum(cosines) / len(cosines)


def weight_fitness(
    attention: Attention,
    inputs: InputMoments | None = None,
    part: str = "kv",
    normalised: bool = True,
    device: str = "cpu",
) -> PairwiseFitness:
    """One layer's weight-sharing error. `distance` is 1 - cosine of weights.

    part: "kv", or "k" or "v" alone (whose errors then add up to that of "kv"), or "q". normalised: divided by the layer's energy tr G, so that
    layers add up fairly; the paper's own is not.
    """
    parts = {kind: gram(attention, kind) for kind in ({"k", "v"} if part != "q" else {"q"})}
    energy = float(sum(np.trace(g) for g in parts.values()))
    grams = [parts[kind] for kind in PARTS[part]]
    return PairwiseFitness.from_gram(sum(grams), energy if normalised and energy > 0 else 1.0, cosine_distance(grams))


def mean_error(
    attention: Attention, merged: Attention, layout, second: Tensor | None, normalised: bool = True
) -> float:
    """The same error for any layout and merge: query heads may read heads that theirs are not merged into, and share projections.

    Per query head, the squared change of its K and V (and, over its own energy, of its q), so that where readers stay
    with their heads and the merge is the mean this is the fitness. Under `second`, of outputs, as the activation fitness has it.
    """
    kv = torch.arange(attention.query_heads) // (attention.query_heads // attention.kv_heads)
    after = merged.expanded(layout)
    changed, energy = {}, {}
    for kind in ("k", "v", "q"):
        old, new = (augmented(getattr(a, kind), getattr(a, f"{kind}_bias")) for a in (attention, after))
        old = old if kind == "q" else old[kv]
        norms = []
        for heads in (old - new, old):
            norms.append(float(((heads if second is None else heads @ second) * heads).sum()))
        changed[kind], energy[kind] = norms
    queries = attention.query_heads // attention.kv_heads
    if not normalised:
        return (changed["k"] + changed["v"]) / queries + changed["q"]
    if second is not None:
        return sum(changed[kind] / max(energy[kind], 1e-300) for kind in changed)
    return (changed["k"] + changed["v"]) / max(energy["k"] + energy["v"], 1e-300) + changed["q"] / max(
        energy["q"], 1e-300
    )
