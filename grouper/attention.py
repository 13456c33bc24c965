"""The weights of one attention layer, head by head, whatever the checkpoint calls them.

Symbols, here and in every other module:

    L   layers of the model
    H   query heads of a layer (attention outputs); where query projections are shared, q itself has fewer
    G   KV heads of a layer: the model's own before regrouping, the layout's after
    d   head_dim: rows of one head
    D   hidden size: inputs of the projections; D + 1 where a constant input 1 carries the biases
    S   members of a group: original heads merged into one shared head
    P   planes of a head: pairs of rows that RoPE rotates together
    f   rows of a head that RoPE leaves alone
    m   largest group of a layer
    n   candidates scored at once
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from grouper.errors import GrouperError
from grouper.layout import Grouping, LayerLayout

Part = Literal["q", "k", "v"]
PARTS: tuple[Part, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class Projection:
    """Heads of q, k or v. weight: [heads, d, D]. bias: [heads, d]. gain: [heads, d] of a norm between projection and
    RoPE, which v never has."""

    weight: Tensor
    bias: Tensor | None = None
    gain: Tensor | None = None

    @property
    def shift(self) -> Tensor:
        """Bias [heads, d]; zeros if there is none."""
        return self.weight.new_zeros(self.weight.shape[:2]) if self.bias is None else self.bias

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Projection":
        """Projection with its weight, bias and gain changed along the heads: change([heads, ...]) -> [other heads,
        ...]."""
        bias, gain = (None if t is None else change(t) for t in (self.bias, self.gain))
        return Projection(change(self.weight), bias, gain)

    def taken(self, index: Tensor | list[int]) -> "Projection":
        """Selection of the heads, by index."""
        return self.changed(lambda heads: heads[index])


class Gains(NamedTuple):
    """Norms on q and k. kind: one of the values of Attention.qk_norm. q, k: gains [H, d] and [G, d]."""

    kind: str
    q: Tensor
    k: Tensor


@dataclass
class Attention:
    """One layer's projections, in float32 unless stated otherwise. Raises GrouperError if shapes do not fit together.

    Before regrouping, G is the model's own number of KV heads and query head h reads KV head h * G // H. After a merge,
    k and v have the layout's heads in its order, and the layout says who reads which. K and V may then differ in
    number, and where the layout shares query projections, q has its query heads.
    """

    q: Tensor  # [H, d, D]
    k: Tensor  # [G, d, D]
    v: Tensor  # [G, d, D]
    o: Tensor  # [D, H, d]
    q_bias: Tensor | None = None  # [H, d]
    k_bias: Tensor | None = None  # [G, d]
    v_bias: Tensor | None = None  # [G, d]
    o_bias: Tensor | None = None  # [D]
    q_norm: Tensor | None = None  # [H, d] gains of a norm between q's projection and RoPE
    k_norm: Tensor | None = None  # [G, d]
    sinks: Tensor | None = None  # [H] an extra score in each softmax, in addition to the tokens'
    planes: Tensor | None = None  # [P, 2] the rows of each plane; None without RoPE
    qk_norm: str | None = None  # "head": each head is divided by its own root mean square, "all": by that of all heads

    def __post_init__(self) -> None:
        if not all(t.ndim == 3 for t in (self.q, self.k, self.v, self.o)):
            shapes = ", ".join(str(list(t.shape)) for t in (self.q, self.k, self.v, self.o))
            raise GrouperError(
                f"attention has q, k, v, o of shapes {shapes}: expected [heads, d, D] thrice and [D, H, d]"
            )
        d, D = self.q.shape[1:]
        found: list[tuple[str, Tensor | None, tuple[int, ...]]] = []
        for part in PARTS:
            one = self.projection(part)
            heads = len(one.weight)
            found += [(part, one.weight, (heads, d, D)), (f"{part}_bias", one.bias, (heads, d))]
            found.append((f"{part}_norm", one.gain, (heads, d)))
        outputs, heads = self.o.shape[:2]
        found += [
            ("o", self.o, (outputs, heads, d)),
            ("o_bias", self.o_bias, (outputs,)),
            ("sinks", self.sinks, (heads,)),
        ]
        for name, tensor, shape in found:
            if tensor is not None and tuple(tensor.shape) != shape:
                raise GrouperError(f"attention has {name} of shape {list(tensor.shape)}: expected {list(shape)}")
        planes = self.planes
        if planes is not None and (planes.shape[1:] != (2,) or int(planes.min()) < 0 or int(planes.max()) >= d):
            raise GrouperError(f"attention has planes of shape {list(planes.shape)}: expected pairs of rows below {d}")

    @property
    def query_heads(self) -> int:
        return self.o.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[0]

    @property
    def queries_per_kv_head(self) -> int:
        """Number of query heads that read each KV head, before regrouping."""
        return self.query_heads // self.kv_heads

    @property
    def head_dim(self) -> int:
        return self.q.shape[1]

    def projection(self, part: Part) -> Projection:
        """Projection q, k or v as stored, with bias and gain."""
        if part == "q":
            return Projection(self.q, self.q_bias, self.q_norm)
        return Projection(self.k, self.k_bias, self.k_norm) if part == "k" else Projection(self.v, self.v_bias)

    def with_projections(self, parts: Mapping[Part, Projection]) -> "Attention":
        """Copy of the attention with these projections replaced."""
        q, k, v = (parts.get(part, self.projection(part)) for part in PARTS)
        return replace(
            self, q=q.weight, k=k.weight, v=v.weight, q_bias=q.bias, k_bias=k.bias, v_bias=v.bias, q_norm=q.gain,
            k_norm=k.gain,
        )  # fmt: skip

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Attention":
        """Copy of the attention with these tensors replaced, by field name."""
        fields: dict[str, Any] = dict(tensors)
        return replace(self, **fields)

    @property
    def gains(self) -> Gains | None:
        """Norms on q and k; None if there are none."""
        if self.qk_norm is None or self.q_norm is None or self.k_norm is None:
            return None
        return Gains(self.qk_norm, self.q_norm, self.k_norm)

    @property
    def rotated_planes(self) -> Tensor:
        """Planes [P, 2] that RoPE rotates; P is 0 without RoPE."""
        return torch.empty(0, 2, dtype=torch.long) if self.planes is None else self.planes

    def readers_of(self, kv_head: int) -> list[int]:
        """Query heads that read this KV head, before regrouping."""
        return list(range(kv_head * self.queries_per_kv_head, (kv_head + 1) * self.queries_per_kv_head))

    @property
    def head_read(self) -> Tensor:
        """KV head that each query head reads, before regrouping [H]."""
        return torch.arange(self.query_heads) // self.queries_per_kv_head

    def expanded(self, layout: LayerLayout) -> "Attention":
        """One q, K and V head per attention output, gathered from the layout's heads. Reference and evaluation run a
        merge in this form.

        Where a norm spans all K heads, that holds only before it: see grouper.running.in_memory.
        """
        groupings, device = layout.groupings.items(), self.o.device
        return self.with_projections(
            {part: self.projection(part).taken(readers_index(grouping, device)) for part, grouping in groupings}
        )

    def to(self, *args: Any, **kwargs: Any) -> "Attention":
        """Every weight moved or cast, as by Tensor.to. `planes` are indices and keep their type."""
        tensors = {name: t for name, t in vars(self).items() if isinstance(t, Tensor) and name != "planes"}
        return self.with_tensors({name: t.to(*args, **kwargs) for name, t in tensors.items()})


@lru_cache(maxsize=64)
def readers_index(grouping: Grouping, device: torch.device) -> Tensor:
    """Index [H], on the device, of the head that each attention output reads. Cached, because copying it each time
    would stall a GPU."""
    with torch.inference_mode(False):  # gradients may flow through its users
        return torch.from_numpy(grouping.group_of).to(device)


@dataclass
class MergedLayer:
    """Weights of a layer after merging or refinement.

    attention: attention weights, KV heads in the layout's order. others: other tensors of the layer that changed, by
    name within the layer. before, after: errors before and after refinement, if the layer was refined: error of the
    regrouped residual stream after the layer, relative to what the layer adds.
    """

    attention: Attention
    others: dict[str, Tensor] = field(default_factory=dict)
    before: float = float("nan")
    after: float = float("nan")

    def on_cpu(self, pinned: bool = False) -> "MergedLayer":
        """Copy in main memory. pinned: use page-locked memory (about ten times faster from a GPU, but not
        swappable)."""
        device = self.attention.q.device
        attention = self.attention.to("cpu", non_blocking=pinned)
        others = {n: t.to("cpu", non_blocking=pinned) for n, t in self.others.items()}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return replace(self, attention=attention, others=others)


Merged = Callable[[int], MergedLayer]  # weights of a layer, computed when asked for
