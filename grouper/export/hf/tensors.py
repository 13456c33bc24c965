"""Every tensor of an exported folder: attention as its class wants it, everything else as it was."""

from collections.abc import Iterator

import torch
from torch import Tensor

from grouper.attention import MergedLayer
from grouper.errors import GrouperError
from grouper.export.format import Job
from grouper.export.hf.as_phi import phi_tensors
from grouper.export.hf.export_class import ExportClass
from grouper.model.shards import Stored, stored

Named = tuple[str, Tensor | Stored]


def exported_tensors(job: Job, export_class: ExportClass) -> Iterator[Named]:
    """(name, tensor) of the new model, in a fixed order, in the dtype that each was stored in: what stays as it is
    where it lies, the rest loaded. One layer's merged weights are held at a time. Raises GrouperError where a merge
    gave numbers that are not finite."""
    a, checkpoint = job.architecture, job.checkpoint
    if a.as_phi:
        assert not job.around, "what stands around the layers has other names there: uptrain the exported Phi instead"
        arranged = lambda done, layer: export_class.arranged(  # noqa: E731
            done.attention, layer, job.layout, checkpoint.config
        )
        yield from map(finite, phi_tensors(checkpoint, a, job.merged, arranged))
        return
    prefixes = {a.prefix(checkpoint, layer): layer for layer in range(a.layers)}
    replaced = a.attention_tensors
    current, done, written = None, None, False
    for name in sorted(checkpoint.tensors):  # a layer's names are neighbours
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is None:
            yield finite((name, job.outside(name)))
            continue
        if prefix != current:
            current, done, written = prefix, job.merged(prefixes[prefix]), False
        inner = name.removeprefix(prefix)
        if inner not in replaced:
            yield name, _other(job, name, inner, done)
        elif not written:
            written = True
            dtype = a.stored_dtype(checkpoint, prefixes[prefix])
            attention = export_class.arranged(done.attention, prefixes[prefix], job.layout, checkpoint.config)
            for new_name, tensor in map(finite, export_class.tensors(a, prefix, attention)):
                yield new_name, tensor.to(dtype)


def _other(job: Job, name: str, inner: str, done: MergedLayer) -> Tensor | Stored:
    """A tensor outside attention: as refinement left it, or as it was."""
    if inner in done.others:
        return done.others[inner].to(job.checkpoint.tensors[name].torch_dtype)
    return stored(job.checkpoint, name)


def finite(named: Named) -> Named:
    if isinstance(named[1], Tensor) and not torch.isfinite(named[1]).all():
        raise GrouperError(f"the merge gave NaN or infinity in {named[0]}: please report this")
    return named
