"""Size of a model's weights under a layout, from headers alone."""

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout


def weight_bytes(checkpoint: Checkpoint, layout: HeadLayout) -> int:
    """Bytes of all tensors if K, V and shared query projections have the layout's heads, in their stored dtypes. The
    padding of `padded` exports and Phi's zero biases are not counted."""
    a = Architecture.of(checkpoint.config)
    total = checkpoint.nbytes
    for index, layer in enumerate(layout.layers):
        here, f = a.prefix(checkpoint, index), a.family_of(index)
        q, k, v = a.query_heads - layer.query_heads, a.kv_heads - layer.k.kv_heads, a.kv_heads - layer.v.kv_heads
        for module, heads in f.storage.rows(q, k, v).items():
            weight = checkpoint.tensors[f"{here}{module}.weight"]
            row = weight.nbytes // weight.shape[1 if f.transposed else 0]  # of one row of a head
            bias = checkpoint.tensors.get(f"{here}{module}.bias")
            total -= heads * a.head_dim * (row + (bias.nbytes // bias.shape[0] if bias else 0))
    return total
