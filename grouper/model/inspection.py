"""What a model's attention looks like, from its configuration and headers alone."""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from grouper.export.classes import open_classes
from grouper.layout import HeadLayout, bytes_of
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Inspection:
    """Bytes are of the KV cache in `kv_dtype`, for one sequence."""

    model: str
    family: str
    parameters: int
    dtype: str
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    rope: str
    biases: bool
    sliding_layers: int
    kv_dtype: str
    kv_bytes_per_token: int
    context: int
    kv_bytes_at_context: int
    uniform_kv_heads: list[int]
    export_classes: list[str]

    def to_data(self) -> dict[str, Any]:
        """For JSON. `deploy` is what the command line calls the classes."""
        data = asdict(self)
        return {**{k: v for k, v in data.items() if k != "export_classes"}, "deploy": data["export_classes"]}


def inspect(checkpoint: Checkpoint, kv_dtype: str = "bfloat16", context: int | None = None) -> Inspection:
    """context: tokens for kv_bytes_at_context; the model's own where not given."""
    a = Architecture.of(checkpoint.config)
    layout = HeadLayout.ungrouped(a.layers, a.query_heads, a.kv_heads, a.head_dim)
    context = context or a.context
    per_token = layout.kv_bytes_per_token(kv_dtype)
    rope = "none"
    if a.position != "rope":
        rope = f"none ({a.position} positions)"
    if a.rotary_dim:
        rope = f"{a.family.rope}-split pairs" if a.family.rope == "half" else "interleaved pairs"
        rope += "" if a.rotary_dim == a.head_dim else f" on {a.rotary_dim} of {a.head_dim}"
        rope += f", none in {len(a.unrotated)} layers" if a.unrotated else ""
    classes = [] if a.kv_heads == 1 else open_classes(a.family, a.as_phi, a.nested)
    return Inspection(
        model=checkpoint.name, family=a.family.model_type,
        parameters=sum(prod(t.shape) for t in checkpoint.tensors.values()),
        dtype=checkpoint.dtype, layers=a.layers, query_heads=a.query_heads, kv_heads=a.kv_heads, head_dim=a.head_dim,
        hidden_size=a.hidden_size, rope=rope, sliding_layers=sum(w is not None for w in a.windows),
        biases=f"{a.prefix(checkpoint, 0)}{a.family.q}.bias" in checkpoint,
        kv_dtype=kv_dtype, kv_bytes_per_token=per_token, context=context,
        kv_bytes_at_context=a.kv_bytes([2 * a.kv_heads] * a.layers, bytes_of(kv_dtype), context),
        uniform_kv_heads=a.uniform_counts(), export_classes=classes,
    )  # fmt: skip
