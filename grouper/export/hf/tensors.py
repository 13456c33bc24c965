"""Every tensor of an exported folder: attention as its class wants it, everything else as it was."""

from collections.abc import Iterator

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.errors import GrouperError
from grouper.export.hf import padded, ragged
from grouper.export.hf.as_phi import phi_tensors
from grouper.export.hf.stock import grouped_order
from grouper.layout import HeadLayout
from grouper.model.architecture import Architecture, separate_tensors
from grouper.model.checkpoint import Checkpoint
from grouper.regroup import Merged


def exported_tensors(
    checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, merged: Merged, deploy: str
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the new model, in a fixed order; those outside attention as they are, attention in its stored dtype."""

    def arranged(layer: int) -> Attention:
        attention, heads = merged(layer).attention, layout.layers[layer]
        if deploy != "padded":
            return grouped_order(attention, heads)
        return padded.with_output_bias(
            padded.padded_order(attention, heads, padded.largest_group(layout)), checkpoint.config
        )

    def named(layer: int, prefix: str) -> Iterator[tuple[str, Tensor]]:
        if deploy == "ragged" and ragged.is_plain(architecture):
            modules = tuple(f"{architecture.family.attention}.{m}" for m in ragged.PROJECTIONS)
            return separate_tensors(prefix, modules, arranged(layer))
        return architecture.tensors(prefix, arranged(layer))

    if architecture.as_phi:
        yield from map(finite, phi_tensors(checkpoint, architecture, merged, arranged))
        return
    replaced = {}
    for layer in range(architecture.layers):
        prefix = architecture.prefix(checkpoint, layer)
        for module in (*architecture.projections(), *architecture.norm_modules):
            for kind in ("weight", "bias"):
                replaced[f"{prefix}{module}.{kind}"] = (layer, prefix)
    changed = {}  # full name -> layer, of tensors outside attention that a refinement changed
    for layer in range(architecture.layers):
        prefix = architecture.prefix(checkpoint, layer)
        changed |= {f"{prefix}{name}": (layer, name) for name in merged(layer).others}
    written = set()
    for name in sorted(checkpoint.tensors):
        if name in changed:
            layer, inner = changed[name]
            yield name, merged(layer).others[inner].to(checkpoint.tensors[name].torch_dtype)
            continue
        if name not in replaced:
            yield name, checkpoint.tensor(name)
            continue
        layer, prefix = replaced[name]
        if layer not in written:
            written.add(layer)
            dtype = architecture.stored_dtype(checkpoint, layer)
            for new_name, tensor in map(finite, named(layer, prefix)):
                yield new_name, tensor.to(dtype)


def finite(named: tuple[str, Tensor]) -> tuple[str, Tensor]:
    if not torch.isfinite(named[1]).all():
        raise GrouperError(f"the merge gave NaN or infinity in {named[0]}: please report this")
    return named
