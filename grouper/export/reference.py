"""Independent reference of the self-test: the original's class with one K and V head per query head, gathered by index
from the merged weights as stored. It shares neither attention nor head order with the exported model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from grouper.attention import Merged, MergedLayer
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.export.format import Job
from grouper.families.architecture import Architecture
from grouper.model.memory import free_memory
from grouper.running.in_memory import InMemoryModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def gathered_reference(job: Job) -> Iterator["PreTrainedModel"]:
    """Original model with the merged weights as stored, in float64 if memory holds it twice, otherwise in float32."""
    fits = 2 * 8 * job.checkpoint.parameters < max(job.options.self_test_memory, free_memory() / 2)
    model = InMemoryModel(job.checkpoint, dtype=torch.float64 if fits else torch.float32)
    if job.around:
        model.replace_around({name: job.changed(name) for name in job.around})
    with model.installed(job.layout, as_stored(job.checkpoint, model.architecture, job.merged)) as reference:
        yield reference


def as_stored(checkpoint: Checkpoint, a: Architecture, merged: Merged) -> Merged:
    """Merged weights, rounded as they are written. A model that is folded into another class gets unrounded float64
    weights, because a product rounds differently from its factors."""

    def stored(layer: int) -> MergedLayer:
        done, prefix = merged(layer), a.prefix(checkpoint, layer)
        if a.as_phi:
            return MergedLayer(done.attention.to(torch.float64), {n: t.double() for n, t in done.others.items()})
        others = {n: t.to(checkpoint.tensors[prefix + n].torch_dtype) for n, t in done.others.items()}
        return MergedLayer(done.attention.to(a.stored_dtype(checkpoint, layer)), others)

    return stored
