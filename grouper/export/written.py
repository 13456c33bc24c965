"""First part of the self-test: every tensor in the exported files must equal the expected one bit for bit."""

from collections.abc import Iterable

import torch

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.checkpoint.shards import Stored, same_bytes, stored
from grouper.export.format import Job, SelfTestFailed
from grouper.export.hf.export_class import ExportClass
from grouper.export.hf.tensors import Named, attentions_within, layer_tensors, outside_tensors


def check_outside(job: Job, written: Checkpoint) -> None:
    """Compare the tensors outside the layers. Raises SelfTestFailed."""
    layers = tuple(attentions_within(job))
    compare(job, written, outside_tensors(job, (n for n in job.checkpoint.tensors if not n.startswith(layers))))


def check_layer(job: Job, written: Checkpoint, export_class: ExportClass, prefix: str) -> None:
    """Compare the tensors of a layer: attention in the form of its class, the rest as refinement left it. Raises
    SelfTestFailed."""
    names = sorted(n for n in job.checkpoint.tensors if n.startswith(prefix))
    compare(job, written, layer_tensors(job, export_class, prefix, names))


def compare(job: Job, written: Checkpoint, tensors: Iterable[Named]) -> None:
    """Raise SelfTestFailed for the first of these tensors that is missing in the files or differs there."""
    for name, tensor in tensors:
        if name not in written or not _same(job, written, name, tensor):
            raise SelfTestFailed(f"the exported model failed its self-test: {name} is not what was to be written")


def _same(job: Job, written: Checkpoint, name: str, wanted: torch.Tensor | Stored) -> bool:
    if isinstance(wanted, Stored):  # a copy, compared when it was written or now
        return job.compared.get(name) == wanted or same_bytes(wanted, stored(written, name))
    found = written.tensor(name)
    return found.dtype == wanted.dtype and torch.equal(found, wanted)
