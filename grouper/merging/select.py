"""Select merge: a shared head is one of the heads behind it, the medoid or the first (GQA's own ablation: mean > first > random)."""

from dataclasses import replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.layout import Groups, LayerLayout
from grouper.merging.folding import augmented


def merge(
    attention: Attention, layout: LayerLayout, inputs: InputMoments | None = None, first: bool = False
) -> Attention:
    """Keep of each group the head nearest to the others: the least sum of 1 - cosine of outputs on calibration text.

    Where K and V are grouped alike, one head gives both, nearest by the mean of K's and V's distances, so that it stays whole. Distances are of
    directions: by squared differences the weakest head would be nearest to all. first: keep the group's first head instead.
    """
    k, v = (_distance(attention, kind, inputs) for kind in ("k", "v"))
    if layout.k.sources == layout.v.sources:
        k = v = (k + v) / 2
    kept = {"k": _chosen(k, layout.k.sources, first), "v": _chosen(v, layout.v.sources, first)}
    if layout.q is not None:
        kept["q"] = _chosen(_distance(attention, "q", inputs), layout.q.sources, first)
    changed = {}
    for kind, index in kept.items():
        names = [n for n in (kind, f"{kind}_bias", f"{kind}_norm") if getattr(attention, n, None) is not None]
        changed |= {n: getattr(attention, n)[index] for n in names}
    return replace(attention, **changed)


def _distance(attention: Attention, kind: str, inputs: InputMoments | None) -> Tensor:
    """[heads, heads]: 1 - cosine of the q, k or v heads' outputs; of their weights without inputs."""
    rows = augmented(getattr(attention, kind), getattr(attention, f"{kind}_bias"))  # [heads, d, D + 1]
    gram = torch.einsum("adx,bdx->ab", rows if inputs is None else rows @ inputs.second, rows)
    size = gram.diagonal().sqrt().clamp_min(1e-150)
    return 1 - gram / size[:, None] / size


def _chosen(distance: Tensor, sources: Groups, first: bool) -> list[int]:
    return [s[0 if first else int(distance[list(s)][:, list(s)].sum(1).argmin())] for s in sources]
