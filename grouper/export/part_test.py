"""Self-test, layer by layer, of models too large to be held in memory.

For each layer, the exported class and the original class get the same random stream. The original class has one K and V
head per query head, gathered by index from the merged weights. The additions of attention to the stream must agree, and
so must those of the rest of the layer. Both classes take all other weights from the exported files, which are compared
bit for bit with the expected ones. Computed in float32, because a single layer on a random stream does not amplify
rounding.
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
    """Compare all layers. Raises SelfTestFailed if a tensor is not the expected one."""
    a, written = job.architecture, Checkpoint.open(exported)
    own_code = (exported / ragged.FILE).is_file()  # our own modelling file, just written or checked
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
    """Job that returns this layer's merge without computing it again."""
    return replace(job, merged=lambda asked: done if asked == layer else job.merged(asked))


@contextmanager
def _gathered(theirs: Skeleton, job: Job, layer: int, done: MergedLayer, state: State) -> Iterator[nn.Module]:
    """Layer of the original class with the merged attention as stored, and everything else from the exported files."""
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
    """Additions of this layer to the stream."""
    recorder = LayerAdds(model.model, model.architecture)
    with recorder.recording([layer]):
        run_layer(model.layer(layer), stream, arguments)
    return recorder
