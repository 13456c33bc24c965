"""Calling a model and reading its answers, the same way for every kind of head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grouper.families.architecture import Architecture
from grouper.running.batch import NOT_ASKED, Batch


def answered(
    network: Callable[..., Any],
    batch: Batch,
    architecture: Architecture,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Any:
    """Output of a transformers model for these examples."""
    decodes = bool(architecture.family.parts)
    uncached = {"use_cache": False} if decodes or batch.windows is not None else {}
    return network(**batch.called_with(device, dtype, decodes), **uncached)


def logits_of(output: Any, batch: Batch) -> Tensor | None:
    """Logits [n, places, classes]: of each next token, of each token, of the begin and end of an answer, or of a class
    in a single place. None for a model without a head."""
    if output.get("start_logits") is not None:
        return torch.stack([output.start_logits, output.end_logits], 1)
    if output.get("logits") is None:
        return None
    if batch.windows is not None:
        return output.logits[:, :-1]
    return output.logits[:, None] if output.logits.ndim == 2 else output.logits


def targets_of(batch: Batch) -> Tensor | None:
    """Right answers [n, places], NOT_ASKED where unknown; None if all are unknown."""
    if batch.windows is not None:
        return batch.windows[:, 1:]
    labels = batch.labels
    return labels[:, None] if labels is not None and labels.ndim == 1 else labels


def asked_of(batch: Batch, logits: Tensor) -> Tensor | None:
    """True for answers that are compared [n, places], on the logits' device; None if all are."""
    if batch.windows is not None or (batch.labels is not None and batch.labels.ndim == 1):
        return None
    asked = batch.read if batch.labels is None else batch.labels != NOT_ASKED
    return asked.to(logits.device) if asked is not None and asked.shape == logits.shape[:2] else None


def pooled(hidden: Tensor, read: Tensor | None) -> Tensor:
    """Mean over tokens [examples, D]. hidden: [examples, tokens, D]. read: [examples, tokens], or None for all."""
    if read is None:
        return hidden.mean(1)
    mask = read.to(hidden)[..., None]
    return (hidden * mask).sum(1) / mask.sum(1)
