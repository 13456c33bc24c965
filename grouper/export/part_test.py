"""The self-test of models that are not to be held in memory: layer by layer, attention computed, everything else
compared.

Of each layer, the exported class's own attention and the original class's, with one K and V head per query head
gathered by index from the merged weights, get the same random stream; what they give must agree. Every other tensor
must be the original's, or what refinement left of it, to the bit. Computed in float32: one attention does not amplify
rounding.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from grouper.attention import Merged, MergedLayer
from grouper.calibration.streams import stub_arguments
from grouper.errors import GrouperError
from grouper.export.format import NOTHING, SelfTest, changed
from grouper.export.hf import ragged
from grouper.layout import HeadLayout
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.model.in_memory import exchanged
from grouper.model.shards import Stored, same_bytes, stored
from grouper.model.streamed import Skeleton

TOKENS = 48


def run_part_test(
    original: Checkpoint,
    exported: Path,
    layout: HeadLayout,
    merged: Merged,
    around: Mapping[str, Tensor] = NOTHING,
    compared: Mapping[str, Stored] = NOTHING,
) -> SelfTest:
    """merged(layer): the weights that were to be written, heads in the layout's order. around: tensors outside the
    layers that changed. compared: copies that were compared when they were written. Raises GrouperError where a tensor
    beside attention is not the one that was to be written."""
    a, written = Architecture.of(original.config), Checkpoint.open(exported)
    own_code = (exported / ragged.FILE).is_file()  # our own modelling file, written a moment ago
    ours, theirs = Skeleton(written, a, own_code), Skeleton(original, a)
    for skeleton in (ours, theirs):
        skeleton.fill_positions()
    stream = torch.randn(1, TOKENS, a.hidden_size, generator=torch.Generator().manual_seed(0))
    arguments = [stub_arguments(skeleton, TOKENS) for skeleton in (ours, theirs)]
    worst = 0.0
    with ThreadPoolExecutor(1) as reader:  # what is read, merged and compared, while attention is computed
        comparing = reader.submit(compare_around, original, written, a, around, compared)
        ahead = reader.submit(merged, 0)
        for layer, layer_layout in enumerate(layout.layers):
            done, dtype = ahead.result(), a.stored_dtype(original, layer)
            comparing.result()
            if layer + 1 < a.layers:
                ahead = reader.submit(merged, layer + 1)
            as_stored = MergedLayer(done.attention.to(dtype).to(torch.float32))
            comparing = reader.submit(compare_beside_attention, original, written, a, layer, done.others, compared)
            with ours.attention_loaded(layer) as block:
                got = attention_output(block, a, stream, arguments[0][layer])
            with theirs.attention_loaded(layer) as block, exchanged(theirs, layer, block, as_stored, layer_layout):
                wanted = attention_output(block, a, stream, arguments[1][layer])
            worst = max(worst, difference(got, wanted))
        comparing.result()
    told = f"layer by layer, attention differs by {worst:.1g} of its size, all other tensors are as they were to be"
    return SelfTest(worst, 0, 0, told)


def difference(got: Tensor, wanted: Tensor) -> float:
    """The largest, over the largest number wanted; infinite where one is not finite, for NaN would pass for small."""
    found = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    return found if math.isfinite(found) else math.inf


@torch.no_grad()
def attention_output(block: nn.Module, a: Architecture, stream: Tensor, arguments: tuple[tuple, dict]) -> Tensor:
    """What the layer's attention makes of a stream; the rest of the layer is not run, and has no weights."""
    found: list[Tensor] = []

    def stop(_module, _inputs, output) -> None:
        found.append(output)
        raise _Enough

    module = block.get_submodule(a.family.attention)
    last = a.family.o.rpartition(".")[2]
    hook = getattr(module, last if hasattr(module, last) else ragged.PROJECTIONS[3]).register_forward_hook(stop)
    try:
        with suppress(_Enough):
            block(stream, *arguments[0], **arguments[1])
    finally:
        hook.remove()
    return found[0]


def compare_around(
    original: Checkpoint,
    written: Checkpoint,
    a: Architecture,
    around: Mapping[str, Tensor] = NOTHING,
    compared: Mapping[str, Stored] = NOTHING,
) -> None:
    """What stands around the layers is the original's, or what it became."""
    layers = tuple(a.prefix(original, layer) for layer in range(a.layers))
    for name in (n for n in original.tensors if not n.startswith(layers)):
        if name in around:
            check(name, name in written and torch.equal(written.tensor(name), changed(original, around, name)))
        else:
            check(name, same(original, written, name, compared))


def compare_beside_attention(
    original: Checkpoint,
    written: Checkpoint,
    a: Architecture,
    layer: int,
    others: dict[str, Tensor],
    compared: Mapping[str, Stored] = NOTHING,
) -> None:
    """A layer's other tensors are the original's, or what refinement left of them: `others`."""
    prefix, attention = a.prefix(original, layer), a.attention_tensors()
    for name in (n for n in original.tensors if n.startswith(prefix)):
        inner = name.removeprefix(prefix)
        if inner not in attention:
            if name not in written:
                check(name, False)
            elif inner in others:
                wanted = others[inner].to(original.tensors[name].torch_dtype)
                check(name, torch.equal(written.tensor(name), wanted))
            else:
                check(name, same(original, written, name, compared))


def same(original: Checkpoint, written: Checkpoint, name: str, compared: Mapping[str, Stored]) -> bool:
    """Whether the tensor of this name is the original's to the bit: as it was found when it was written, if the
    original's is what was copied then; else both are read."""
    if name not in written:
        return False
    wanted = stored(original, name)
    return compared.get(name) == wanted or same_bytes(wanted, stored(written, name))


def check(name: str, same: bool) -> None:
    if not same:
        raise GrouperError(
            f"the exported model failed its self-test: {name} is not what was to be written; nothing was written"
        )


class _Enough(Exception):
    """What attention gives is known."""
