"""Every tensor of an exported folder: attention as its class wants it, everything else as it was."""

import math
from collections.abc import Iterable, Iterator

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
    where it lies, the rest loaded. The merged weights of one layer of the model are held at a time. Raises GrouperError
    where a merge gave numbers that are not finite."""
    a, checkpoint = job.architecture, job.checkpoint
    if a.as_phi:
        assert not job.around, "what stands around the layers has other names there: uptrain the exported Phi instead"
        arranged = lambda done, layer: export_class.arranged(  # noqa: E731
            done.attention, layer, job.layout, checkpoint.config
        )
        yield from map(finite, phi_tensors(checkpoint, a, job.merged, arranged))
        return
    inside: dict[str, list[int]] = {}  # the attentions of each layer of the model: a decoder may have two in one
    for layer in range(a.layers):
        inside.setdefault(a.prefix(checkpoint, layer), []).append(layer)
    replaced = [a.attention_tensors(layer) for layer in range(a.layers)]
    current, done, written = None, {}, set()
    for name in sorted(checkpoint.tensors):  # a layer's names are neighbours
        prefix = next((p for p in inside if name.startswith(p)), None)
        if prefix is None:
            yield finite((name, job.outside(name)))
            continue
        if prefix != current:
            current, done, written = prefix, {layer: job.merged(layer) for layer in inside[prefix]}, set()
        inner = name.removeprefix(prefix)
        layer = next((i for i in inside[prefix] if inner in replaced[i]), None)
        if layer is None:
            yield name, _other(job, name, inner, done.values())
        elif layer not in written:
            written.add(layer)
            dtype = a.stored_dtype(checkpoint, layer)
            attention = export_class.arranged(done[layer].attention, layer, job.layout, checkpoint.config)
            for new_name, tensor in map(finite, export_class.tensors(a, prefix, attention, layer)):
                yield new_name, tensor.to(dtype)


def _other(job: Job, name: str, inner: str, done: Iterable[MergedLayer]) -> Tensor | Stored:
    """A tensor outside attention: as refinement left it, of several attentions in a layer that of the last, or as it
    was."""
    for one in reversed(list(done)):
        if inner in one.others:
            return one.others[inner].to(job.checkpoint.tensors[name].torch_dtype)
    return stored(job.checkpoint, name)


def finite(named: Named) -> Named:
    tensor = named[1]
    if isinstance(tensor, Tensor) and tensor.numel() and not all(map(math.isfinite, tensor.detach().aminmax())):
        raise GrouperError(f"the merge gave NaN or infinity in {named[0]}: please report this")
    return named
