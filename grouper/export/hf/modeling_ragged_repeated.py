"""Part of modeling_ragged.py for encoders whose class wants as many K and V heads as query heads. It stands there in
place of install_groups."""

import torch
from torch import nn

FUSED, SHARED, BY_HEAD = None, ("key", "value"), False


# begin
class Repeated(nn.Linear):
    """Module for K, for V, or for q, k and v in one, in a class without a cache. It has rows for the existing K and V
    heads; its output has each of them once for every query head that reads it, which is what the class expects. sizes:
    number of readers of each head."""

    def __init__(self, old, sizes, fused):
        groups, self.sizes = len(sizes), sizes
        self.head_dim = old.out_features // ((3 if fused else 1) * sum(sizes))
        self.counts = [sum(sizes), groups, groups] if fused else [groups]
        super().__init__(old.in_features, sum(self.counts) * self.head_dim, bias=old.bias is not None)

    def forward(self, hidden_states):
        heads = super().forward(hidden_states).unflatten(-1, (-1, self.head_dim))
        *query, key, value = heads.split(self.counts, dim=-2) if len(self.counts) > 1 else (heads, None)
        parts = [*query, *(self.repeated(shared) for shared in (key, value) if shared is not None)]
        joined = torch.stack(parts, -2) if BY_HEAD else torch.cat(parts, -2)
        return joined.flatten(hidden_states.ndim - 1)

    def repeated(self, heads):
        """Heads [..., G, head_dim] for each query head."""
        sizes = zip(heads.unbind(-2), self.sizes)
        return torch.stack([head for head, size in sizes for _ in range(size)], -2)


def install_groups(attention, readers, query_of_head=None):
    """Give an attention as many KV heads as there are lists of query heads in `readers`, in place."""
    for name in SHARED if FUSED is None else (FUSED,):
        old = getattr(attention, name)
        setattr(attention, name, Repeated(old, list(map(len, readers)), name == FUSED))
