"""Inspection of a model's attention, from its configuration and headers alone."""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.checkpoint.header_check import check_tensors, unread_files
from grouper.errors import GrouperError
from grouper.export.hf.engines import engines_for
from grouper.families.architecture import Architecture
from grouper.families.configuration import how_supported
from grouper.kv_cache import Saving, bytes_of, largest_batch

CONTEXT = 512  # tokens, for models without a maximum length

LOG = logging.getLogger("grouper")


@dataclass(frozen=True)
class Inspection:
    """Facts about a model's attention. Sizes are bytes of the KV cache in `kv_dtype`, for one sequence. savings: caches
    of `batch` sequences, for each number of KV heads that all layers can have. card: memory in bytes of the GPU that
    `largest_batch` refers to. support: how a type without an entry is supported."""

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
    kv_bytes_per_source_token: int = 0
    reads: str = "text"
    batch: int = 1
    card: int | None = None
    support: str = ""
    savings: list[Saving] = field(default_factory=list)

    def to_data(self) -> dict[str, Any]:
        """Contents as JSON data. `deploy` is the command line's name of the export classes."""
        data = asdict(self)
        return {**{k: v for k, v in data.items() if k != "export_classes"}, "deploy": data["export_classes"]}


def inspect(
    checkpoint: Checkpoint,
    kv_dtype: str = "bfloat16",
    context: int | None = None,
    batch: int = 1,
    card: int | None = None,
) -> Inspection:
    """Inspect a model. context: tokens per sequence (default: the model's maximum). batch: number of sequences. card:
    memory of a GPU in bytes. Raises GrouperError for sizes below 1."""
    if min(context or 1, batch, card or 1) < 1:
        raise GrouperError(f"a context of {context} tokens, a batch of {batch}: expected at least 1 of each")
    a = Architecture.of(checkpoint.config)
    check_tensors(checkpoint, a)
    for note in unread_files(checkpoint):
        LOG.warning(note)
    context = context or a.context or CONTEXT
    per_token = a.ungrouped.kv_bytes_per_token(kv_dtype)
    rope = "none"
    if a.position != "rope":
        rope = f"none ({a.position} positions)"
    if a.rotary_dim:
        rope = f"{a.family.rope}-split pairs" if a.family.rope == "half" else "interleaved pairs"
        rope += "" if a.rotary_dim == a.head_dim else f" on {a.rotary_dim} of {a.head_dim}"
        rope += f", none in {len(a.unrotated)} layers" if a.unrotated else ""
    windowed = any(window is not None for window in a.windows)
    classes = [] if a.kv_heads == 1 else a.family.export_classes(a.as_phi, a.nested, windowed)
    return Inspection(
        model=checkpoint.name, family=a.family.model_type,
        parameters=checkpoint.parameters,
        dtype=checkpoint.dtype, layers=a.layers, query_heads=a.query_heads, kv_heads=a.kv_heads, head_dim=a.head_dim,
        hidden_size=a.hidden_size, rope=rope, sliding_layers=sum(w is not None for w in a.windows),
        biases=f"{a.prefix(checkpoint, 0)}{a.family_of(0).storage.q}.bias" in checkpoint,
        kv_dtype=kv_dtype, kv_bytes_per_token=per_token, context=context,
        kv_bytes_at_context=a.kv_bytes([2 * a.kv_heads] * a.layers, bytes_of(kv_dtype), context),
        uniform_kv_heads=a.uniform_counts(), export_classes=classes,
        reads=a.family.reads,
        kv_bytes_per_source_token=a.ungrouped.kv_bytes_per_source_token(kv_dtype),
        batch=batch, card=card, support=how_supported(checkpoint.config, a.family),
        savings=savings(checkpoint, a, bytes_of(kv_dtype), context, batch, card, classes),
    )  # fmt: skip


def savings(
    checkpoint: Checkpoint,
    a: Architecture,
    bytes_per_number: float,
    context: int,
    batch: int,
    card: int | None,
    classes: list[str],
) -> list[Saving]:
    """Cache sizes with the model's own KV heads first, then with each smaller number that all layers can have. Weights
    are counted for each number, because fewer KV heads shrink them too. classes: classes that the model can be exported
    as."""
    found = []
    for kv_heads in (a.kv_heads, *reversed(a.uniform_counts())):
        one = a.kv_bytes([2 * kv_heads] * a.layers, bytes_per_number, context)
        fits = None if card is None else largest_batch(card, checkpoint.nbytes, one)
        fewer = kv_heads < a.kv_heads
        deploy = class_of(kv_heads, a.kv_heads, classes) if fewer else ""
        engines = tuple(engines_for(a, deploy)) if fewer else ()
        found.append(Saving(kv_heads, kv_heads / a.kv_heads, batch * one, fits, deploy, engines))
    return found


def class_of(kv_heads: int, of: int, classes: list[str]) -> str:
    """Export class of a model whose layers all have `kv_heads` groups of the original `of` KV heads, of equal size if
    possible.

    >>> class_of(4, 8, ["stock", "ragged"]), class_of(2, 3, ["stock", "padded", "ragged"]), class_of(2, 3, ["ragged"])
    ('stock', 'padded', 'ragged')
    """
    return next(c for c in ("padded" if of % kv_heads else "stock", classes[-1]) if c in classes)
