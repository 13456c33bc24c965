"""Weighted merge (WGQA, arXiv 2407.10855): a shared head is sum_s w_s * W_s over its group's heads.

Weights are of three kinds:

    scalar   one number a head                      (WGQA)
    column   one for each component of the head [d] (COLWGQA: scales output channels)
    row      one for each input component [D]       (ROWWGQA: scales input channels)

The paper starts at the mean and learns the weights with the model. Here they start at the mean and are fitted to
attention's outputs on calibration text, a least-squares problem: for V, the sum over the group's query heads h of
|(W_O^h (W_V^h - sum_s w_s * W_V^s)) C^(1/2)|^2; for K the same with the query's energy in place of W_O: per
frequency plane with RoPE, as a whole matrix without it. If heads were not weighted in this way, the mean itself would
be the optimum of scalar weights. Conjugate gradients solve the normal equations by products alone. Norms between
projection and RoPE are ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.errors import GrouperError
from grouper.layout import LayerLayout
from grouper.merging.base import Merge
from grouper.merging.folding import augmented, check_readers_are_sources, split
from grouper.merging.mean import averaged

# For members [S, d, X]: shape of the weights, weighted sum of members, gradient of the weights from that of the sum.
KINDS: dict[str, tuple[Callable[[Tensor], tuple[int, ...]], str, str]] = {
    "scalar": (lambda members: members.shape[:1], "s,sdx->dx", "sdx,dx->s"),
    "column": (lambda members: members.shape[:2], "sd,sdx->dx", "sdx,dx->sd"),
    "row": (lambda members: (members.shape[0], members.shape[2]), "sx,sdx->dx", "sdx,dx->sx"),
}


@dataclass(frozen=True)
class Weighted(Merge):
    """Weighted merge. kind: kind of weights, scalar, column or row. steps: most steps of conjugate gradients. enough:
    stop at this share of the first residual."""

    name: str = "weighted"
    kind: str = "scalar"
    steps: int = 200
    enough: float = 1e-10
    paper = "WGQA, arXiv 2407.10855"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GrouperError(f"weights of kind {self.kind!r}: expected one of {', '.join(KINDS)}")

    def merge(self, attention: Attention, layout: LayerLayout, inputs: InputMoments) -> Attention:
        """Merge a layer. Raises GrouperError if query heads would read heads that theirs are not merged into."""
        check_readers_are_sources(attention, layout, self.name)
        second_moment = inputs.second_moment
        k, v = augmented(attention.projection("k")), augmented(attention.projection("v"))
        o = attention.o.double().unflatten(1, (attention.kv_heads, -1))  # [D, G, queries, d]
        seen_of_v = torch.einsum("xgqd,xgqe->gde", o, o)  # [G, d, d]
        seen_of_k = query_energy(attention, inputs.of_queries.second_moment)
        new_k = [self.fitted(k[list(s)], seen_of_k[list(s)], second_moment) for s in layout.k.members]
        new_v = [self.fitted(v[list(s)], seen_of_v[list(s)], second_moment) for s in layout.v.members]
        k, k_bias = split(torch.stack(new_k), attention.k_bias, attention.k)
        v, v_bias = split(torch.stack(new_v), attention.v_bias, attention.v)
        k_norm = averaged(attention, "k", layout.k).gain
        return replace(attention, k=k, k_bias=k_bias, k_norm=k_norm, v=v, v_bias=v_bias)

    def fitted(self, members: Tensor, seen: Tensor, second_moment: Tensor) -> Tensor:
        """Weighted sum [d, X] with the least loss: argmin over w of sum_s tr(E_s^T seen_s E_s second_moment) with E_s =
        members_s - sum_t w_t * members_t.

        members: [S, d, X]. second_moment: [X, X]. seen: [S, d, d], weight of each member's components for its readers.
        """
        if len(members) == 1:
            return members[0]
        shape, combine, back = KINDS[self.kind]
        whole = seen.sum(0)

        def normal(w: Tensor) -> Tensor:
            return torch.einsum(back, members, whole @ torch.einsum(combine, w, members) @ second_moment)

        wanted = torch.einsum(back, members, (seen @ members).sum(0) @ second_moment)
        start = torch.full(shape(members), 1 / len(members), dtype=members.dtype, device=members.device)
        return torch.einsum(combine, self.solved(normal, wanted, start), members)

    def solved(self, normal: Callable[[Tensor], Tensor], wanted: Tensor, w: Tensor) -> Tensor:
        """Solution w of normal(w) = wanted, by conjugate gradients."""
        residual = wanted - normal(w)
        direction, size = residual.clone(), residual.square().sum()
        first = size
        for _ in range(self.steps):
            if size <= self.enough**2 * first or size == 0:
                break
            image = normal(direction)
            curvature = (direction * image).sum()
            if curvature <= 0:  # a direction that no reader sees
                break
            step = size / curvature
            w = w + step * direction
            residual = residual - step * image
            size, before = residual.square().sum(), size
            direction = residual + size / before * direction
        return w


def query_energy(attention: Attention, second_moment: Tensor) -> Tensor:
    """Second moment E q q^T [G, d, d], summed over the readers of each KV head. RoPE mixes the rows of a plane, so only
    their energy is kept."""
    q = augmented(attention.projection("q")).unflatten(0, (attention.kv_heads, -1))  # [G, queries, d, D + 1]
    gram = torch.einsum("gqdx,xy,gqey->gde", q, second_moment, q)
    if attention.planes is None:
        return gram
    unrotated = torch.ones(gram.shape[-1], dtype=torch.bool)
    unrotated[attention.planes.flatten()] = False
    seen = gram * (unrotated[:, None] & unrotated)
    a, b = attention.planes.T
    energy = gram.diagonal(dim1=1, dim2=2)
    plane = (energy[:, a] + energy[:, b]) / 2
    seen[:, a, a] = seen[:, b, b] = plane
    return seen
