"""The weights of one attention layer, head by head, whatever the checkpoint calls them."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grouper.layout import LayerLayout


@dataclass
class Attention:
    """One layer's projections; float32 unless said otherwise.

    Before regrouping, G is the model's own number of KV heads and query head h reads KV head h * G // H. After a merge, k and v have the
    layout's heads in its order, and the layout says who reads which. K and V may then differ in number, and where the layout shares query
    projections, q has its query heads.
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
    planes: Tensor | None = None  # [rotary_dim / 2, 2] rows of a head that RoPE rotates together; None without RoPE
    qk_norm: str | None = None  # "head": each head is divided by its own root mean square, "all": by that of all heads

    @property
    def query_heads(self) -> int:
        return self.o.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[0]

    @property
    def head_dim(self) -> int:
        return self.q.shape[1]

    def expanded(self, layout: LayerLayout) -> "Attention":
        """One q, K and V head per attention output, by index from the layout's: what a merge comes to, for reference and evaluation.

        Where a norm spans all K heads, that holds only before it: see grouper.model.in_memory.
        """
        index = {"k": torch.from_numpy(layout.k.group_of), "v": torch.from_numpy(layout.v.group_of)}
        if layout.q is not None:
            index["q"] = torch.from_numpy(layout.q.group_of)
        parts = {
            name: i
            for part, i in index.items()
            for name in (part, f"{part}_bias", f"{part}_norm")
            if hasattr(self, name)
        }
        return replace(
            self, **{n: getattr(self, n)[i.to(self.o.device)] for n, i in parts.items() if getattr(self, n) is not None}
        )

    def to(self, *args, **kwargs) -> "Attention":
        """Every weight moved or cast, as Tensor.to does; `planes` are indices and stay."""
        moved = {
            name: t.to(*args, **kwargs) for name, t in vars(self).items() if isinstance(t, Tensor) and name != "planes"
        }
        return replace(self, **moved)


@dataclass
class MergedLayer:
    """What a layer becomes. attention: its weights, heads in the layout's order. others: the layer's other tensors that changed, by name
    within the layer.

    before, after: where it was refined, the error of the regrouped residual stream behind the layer, relative to what the layer adds.
    """

    attention: Attention
    others: dict[str, Tensor] = field(default_factory=dict)
    before: float = float("nan")
    after: float = float("nan")


def concatenated(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[heads, d, D] or, with a bias, [heads, d, D + 1]: the bias as the weight of a constant input 1."""
    return weight if bias is None else torch.cat([weight, bias[..., None].to(weight)], dim=-1)
