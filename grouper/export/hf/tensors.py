"""Tensors of an exported folder: attention in the form of its class, everything else unchanged."""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TypeVar

from torch import Tensor

from grouper.attention import MergedLayer
from grouper.checkpoint.shards import Stored, stored
from grouper.errors import GrouperError
from grouper.export.format import Job
from grouper.export.hf.as_phi import phi_tensors
from grouper.export.hf.export_class import ExportClass

Named = tuple[str, Tensor | Stored]
Entry = TypeVar("Entry", bound=Tensor | Stored)


def exported_tensors(job: Job, export_class: ExportClass) -> Iterator[Named]:
    """Names and tensors of the new model, in a fixed order and in their stored dtypes. Unchanged tensors are given by
    their location, all others loaded. The merged weights of one layer of the model are held at a time. Raises
    GrouperError if a merge gave numbers that are not finite."""
    a, checkpoint = job.architecture, job.checkpoint
    if a.as_phi:
        assert not job.around, "what stands around the layers has other names there: uptrain the exported Phi instead"
        arranged = lambda done, layer: export_class.arranged(  # noqa: E731
            done.attention, layer, job.layout, checkpoint.config
        )
        yield from map(finite, phi_tensors(checkpoint, a, job.merged, arranged))
        return
    prefixes = list(attentions_within(job))
    prefix_of = lambda name: next((p for p in prefixes if name.startswith(p)), None)  # noqa: E731
    for prefix, names in groupby(sorted(checkpoint.tensors), prefix_of):  # names of a layer are neighbours
        if prefix is None:
            yield from outside_tensors(job, names)
        else:
            yield from layer_tensors(job, export_class, prefix, list(names))


def attentions_within(job: Job) -> dict[str, list[int]]:
    """Attentions in each layer of the model, by the layer's prefix. A layer of a decoder may have two."""
    inside: dict[str, list[int]] = {}
    for layer in range(job.architecture.layers):
        inside.setdefault(job.architecture.prefix(job.checkpoint, layer), []).append(layer)
    return inside


def outside_tensors(job: Job, names: Iterable[str]) -> Iterator[Named]:
    """Tensors of these names, which are outside the layers."""
    yield from (finite((name, job.outside(name))) for name in names)


def layer_tensors(job: Job, export_class: ExportClass, prefix: str, names: list[str]) -> Iterator[Named]:
    """Tensors of one layer of the model. names: all tensors of that layer in the original."""
    a, checkpoint = job.architecture, job.checkpoint
    done = {layer: job.merged(layer) for layer in attentions_within(job)[prefix]}
    replaced, written = {layer: a.attention_tensors(layer) for layer in done}, set()
    for name in names:
        inner = name.removeprefix(prefix)
        layer = next((i for i in done if inner in replaced[i]), None)
        if layer is None:
            yield name, _other(job, name, inner, done.values())
        elif layer not in written:
            written.add(layer)
            dtype = a.stored_dtype(checkpoint, layer)
            attention = export_class.arranged(done[layer].attention, layer, job.layout, checkpoint.config)
            for new_name, tensor in map(finite, export_class.tensors(a, prefix, attention, layer)):
                yield new_name, tensor.to(dtype)


def _other(job: Job, name: str, inner: str, done: Iterable[MergedLayer]) -> Tensor | Stored:
    """Tensor of a layer outside attention: refined if refinement trained it, otherwise as in the original. If the layer
    has several attentions, the last one that holds the tensor decides."""
    for one in reversed(list(done)):
        if inner in one.others:
            return one.others[inner].to(job.checkpoint.tensors[name].torch_dtype)
    return stored(job.checkpoint, name)


def finite(named: tuple[str, Entry]) -> tuple[str, Entry]:
    tensor = named[1]
    if isinstance(tensor, Tensor) and tensor.numel() and not all(map(math.isfinite, tensor.detach().aminmax())):
        raise GrouperError(f"the merge gave NaN or infinity in {named[0]}: please report this")
    return named
