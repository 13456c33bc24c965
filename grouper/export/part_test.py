"""The self-test of models that are not to be held in memory: layer by layer.

Of each layer, the exported class and the original class, the latter with one K and V head per query head gathered by
index from the merged weights, get the same random stream. What attention adds to it and what the rest of the layer adds
must agree. Both take the weights beside attention from the exported files, which are compared with what was to be
written, to the bit. Computed in float32: one layer of a random stream does not amplify rounding.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from grouper.attention import MergedLayer
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.export.format import Job, SelfTest
from grouper.export.hf import ragged
from grouper.export.hf.export_class import ExportClass
from grouper.export.layer_adds import LayerAdds, worst_difference
from grouper.export.written import check_layer, check_outside
from grouper.running.in_memory import exchanged
from grouper.running.streamed import Skeleton, State
from grouper.running.stub_layers import stub_arguments
from grouper.running.walk import run_layer

TOKENS = 16


def run_part_test(job: Job, exported: Path, export_class: ExportClass) -> SelfTest:
    """Raises SelfTestFailed where a tensor is not the one that was to be written."""
    a, written = job.architecture, Checkpoint.open(exported)
    own_code = (exported / ragged.FILE).is_file()  # our own modelling file, written or checked a moment ago
    ours, theirs = Skeleton(written, a, own_code), Skeleton(job.checkpoint, a)
    for skeleton in (ours, theirs):
        skeleton.fill_positions()
    stream = torch.randn(1, TOKENS, a.hidden_size, generator=torch.Generator().manual_seed(0))
    arguments = [stub_arguments(skeleton, TOKENS) for skeleton in (ours, theirs)]
    worst = (0.0, "")
    with ThreadPoolExecutor(1) as reader:  # reads, merges and compares while layers are computed
        comparing = reader.submit(check_outside, job, written)
        ahead = reader.submit(job.merged, 0)
        for layer in range(a.layers):
            done = ahead.result()
            comparing.result()
            if layer + 1 < a.layers:
                ahead = reader.submit(job.merged, layer + 1)
            known = _knowing(job, layer, done)
            comparing = reader.submit(check_layer, known, written, export_class, a.prefix(job.checkpoint, layer))
            state = ours.state(layer)
            with ours.filled(layer, state):
                got = _adds(ours, layer, stream, arguments[0][layer])
            with _gathered(theirs, job, layer, done, state):
                wanted = _adds(theirs, layer, stream, arguments[1][layer])
            worst = max(worst, worst_difference(got, wanted), key=lambda found: found[0])
        comparing.result()
    told = "every layer of the folder gives what the merged layer gives"
    return SelfTest(worst[0], 0, 0, f"{told} (largest difference {worst[0]:.1g} of what it adds)", worst[1])


def _knowing(job: Job, layer: int, done: MergedLayer) -> Job:
    """The same job, which need not merge this layer again."""
    return replace(job, merged=lambda asked: done if asked == layer else job.merged(asked))


@contextmanager
def _gathered(theirs: Skeleton, job: Job, layer: int, done: MergedLayer, state: State) -> Iterator[nn.Module]:
    """The original's layer with the merged attention as stored, and everything else of the exported files."""
    a = job.architecture
    beside = {n: t for n, t in state.items() if n not in a.attention_tensors(layer) and theirs.has(layer, n)}
    attention = done.attention.to(a.stored_dtype(job.checkpoint, layer)).to(torch.float32)
    with (
        theirs.filled(layer, beside) as block,
        exchanged(theirs, layer, block, MergedLayer(attention), job.layout.layers[layer]),
    ):
        yield block


@torch.no_grad()
def _adds(model: Skeleton, layer: int, stream: Tensor, arguments: tuple[tuple, dict]) -> LayerAdds:
    """What this layer adds to the stream."""
    recorder = LayerAdds(model.model, model.architecture)
    with recorder.recording([layer]):
        run_layer(model.layer(layer), stream, arguments)
    return recorder
