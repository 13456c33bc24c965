"""Check of the attention tensors in a checkpoint's headers against what config.json implies."""

from collections.abc import Iterator

from grouper.checkpoint.checkpoint import INDEX, SINGLE, Checkpoint
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture

FLOATS = ("F64", "F32", "F16", "BF16")


def check_tensors(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Raise GrouperError if an attention tensor is missing, is not floating point, or has another shape than
    config.json implies. Only headers are read."""
    for name, expected, needed in _implied(checkpoint, architecture):
        if name not in checkpoint:
            if needed:
                raise GrouperError(f"{checkpoint.name} has no tensor {name}: is the checkpoint complete?")
            continue
        info = checkpoint.tensors[name]
        if info.dtype not in FLOATS:
            raise GrouperError(
                f"{name} of {checkpoint.name} is of type {info.dtype}: expected weights as one of {', '.join(FLOATS)} "
                "(dequantise a quantised model first)"
            )
        if info.shape != expected:
            raise GrouperError(
                f"{name} of {checkpoint.name} has shape {list(info.shape)}, where config.json implies {list(expected)}"
            )


def _implied(checkpoint: Checkpoint, architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Attention tensors of every layer, norms included, as (name, shape, whether required)."""
    a = architecture
    q, kv, hidden = a.query_heads * a.head_dim, a.kv_heads * a.head_dim, a.hidden_size
    for layer in range(a.layers):
        prefix, f = a.prefix(checkpoint, layer), a.family_of(layer)
        for module, count in f.storage.rows(q, kv, kv).items():
            yield f"{prefix}{module}.weight", (hidden, count) if f.transposed else (count, hidden), True
            yield f"{prefix}{module}.bias", (count,), False
        yield f"{prefix}{f.storage.o}.weight", (q, hidden) if f.transposed else (hidden, q), True
        yield f"{prefix}{f.storage.o}.bias", (hidden,), False
        for norm in f.norm if a.family.parts else a.norms:
            yield f"{prefix}{norm}.weight", (hidden,), False
            yield f"{prefix}{norm}.bias", (hidden,), False
        if f.sinks is not None:
            yield f"{prefix}{f.sinks}", (a.query_heads,), True
        if f.qk_norm is not None and f.qk_gains:
            for norm, count in zip(f.norms_of_qk, (q, kv)):
                size = count if f.qk_norm == "all" else a.head_dim
                yield f"{prefix}{norm}.weight", (size,), True


def unread_files(checkpoint: Checkpoint) -> list[str]:
    """Note for the user if there are weight files that transformers does not read."""
    if INDEX not in checkpoint.source.files() or SINGLE not in checkpoint.weight_files:
        return []
    return [f"{checkpoint.name} has {SINGLE} and {INDEX}: the first is read, as transformers does"]
