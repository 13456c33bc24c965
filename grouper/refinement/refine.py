"""Layer-wise reconstruction after a merge: the shared K and V heads, q and o learn to give what the original layer
gave.

Layers are taken in order. Two residual streams run side by side over the calibration text: the original's, and the
regrouped model's, which has the errors of the layers before it. At each layer, Adam fits that layer's q, shared k,
shared v and o so that the regrouped stream behind it matches the original's. No labels, no backward pass through the
model, memory for one layer at a time.

Scope "attention" matches the stream behind the attention sublayer and trains its projections; scope "block" matches the
stream behind the whole layer and trains its MLP and norms along, more gently. Experts that the class keeps stacked stay
as they are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from grouper.attention import Merged
from grouper.calibration.streams import Arguments, first_inputs, room
from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.model.layers import Layers
from grouper.names import expected
from grouper.progress import Progress, untold
from grouper.ranks import ALONE, Ranks
from grouper.refinement.descent import TOLD, WARM_UP
from grouper.refinement.layer import MEASURED, SCOPES, Beside, LayerWorker, RefineOptions
from grouper.refinement.saved import LayersInMemory, RefinedLayers, SavedLayers, save_layer
from grouper.threads import in_background

ESTIMATED = {"cpu": 8, "cuda": 2 * TOLD}  # steps that a time is estimated from


def refine_layers(
    model: Layers,
    layout: HeadLayout,
    merged: Merged,
    windows: Tensor | Sequence[Tensor],
    options: RefineOptions | None = None,
    *,
    device: str | None = None,
    folder: Path | None = None,
    progress: Progress = untold,
    ranks: Ranks = ALONE,
) -> RefinedLayers:
    """Refine layer by layer; a layer that training does not improve stays as merged. Returns the layers' weights.

    model: the original; it may stay on the CPU while layers are worked on `device` one by one. merged(layer): the
    start. windows: [n, tokens] ids of calibration text, or several of these, of different lengths. folder: where
    finished layers are kept instead of in memory, so that a killed refinement goes on with the next one. ranks: with
    whom every step's windows are shared, gradients summed; the first one keeps layers in `folder`, where all read them.
    The same call gives the same weights on the same machine.
    """
    device = device or model.device
    options = (options or RefineOptions()).for_device(device)
    if options.scope not in SCOPES:
        raise GrouperError(f"unknown scope {options.scope!r}: {expected(options.scope, SCOPES)}")
    texts = [windows] if isinstance(windows, Tensor) else windows
    steps, layers = options.steps_for(sum(text.numel() for text in texts)), len(layout.layers)
    streams = [Streams.of(model, text, device, options.scope) for text in texts]
    in_memory = LayersInMemory()
    saved = None if folder is None else SavedLayers(folder)
    with deterministic(), in_background() as background:
        for layer, layer_layout in enumerate(layout.layers):
            worker = LayerWorker(model, layer, layer_layout, streams[0].arguments[layer], device, options, ranks)
            workers = [worker, *(worker.on(one.arguments[layer]) for one in streams[1:])]
            known = ranks.first_does(lambda layer=layer: saved is not None and layer in saved)
            if known:
                worker.set(saved(layer))
            else:

                def tell(step: int, _steps: int, note: str, layer: int = layer) -> None:
                    progress(layer * steps + step, layers * steps, f"refining layer {layer}, {note}")

                for own, one in zip(workers, streams):
                    own.set_targets(one.original, one.wanted)
                first, *beside = [Beside(own, one.wanted, one.regrouped) for own, one in zip(workers, streams)]
                done = worker.fit(merged(layer).attention, first.wanted, first.regrouped, steps, tell, beside)
                if saved is None:
                    in_memory[layer] = done.on_cpu()
                elif ranks.first:
                    background(save_layer, saved.path(layer), done.on_cpu(for_a_while=True))
                del done  # a whole layer
            for own, one in zip(workers, streams):
                if known or one.wanted is not one.original:
                    own.advance(own.original, one.original)
                own.advance(own.regrouped, one.regrouped)
    ranks.wait()
    return in_memory if saved is None else saved


class Streams(NamedTuple):
    """Streams of windows of one length, [n, tokens, D] each: the original's, the regrouped model's, and what is wanted
    behind a layer, which in scope "block" is the original's next stream. arguments: of each layer, beside the
    stream."""

    original: Tensor
    regrouped: Tensor
    wanted: Tensor
    arguments: list[Arguments]

    @classmethod
    def of(cls, model: Layers, windows: Tensor, device: str, scope: str) -> "Streams":
        original, arguments = first_inputs(model, windows, device)
        regrouped = room(original.shape, device).copy_(original)
        wanted = original if scope == "block" else room(original.shape, device)
        return cls(original, regrouped, wanted, arguments)


def estimate_seconds(
    model: Layers,
    layout: HeadLayout,
    merged: Merged,
    texts: Sequence[Tensor],
    options: RefineOptions,
    device: str,
    ranks: Ranks = ALONE,
) -> float:
    """What `refine_layers` will take: steps and passes of the first layer on batches of their real size, after some
    that warm the device up. Each rank measures by itself; what ranks share is divided by their number. texts: as
    `refine_layers` has its windows; those of the first length stand for all."""
    options, windows = options.for_device(device), texts[0]
    tokens = sum(text.numel() for text in texts)
    few = windows[: max(1, options.batch_tokens // windows.shape[1])]
    batches = -(-tokens // few.numel())
    original, arguments = first_inputs(model, few, device)
    start = merged(0).attention

    def worker_of_a_layer() -> LayerWorker:
        merged(0)
        return LayerWorker(model, 0, layout.layers[0], arguments[0], device, options)

    worker = worker_of_a_layer()
    set_up = _seconds(worker_of_a_layer, device)
    wanted, told, steps = torch.empty_like(original), {}, ESTIMATED["cuda" if "cuda" in str(device) else "cpu"]
    worker.set_targets(original, wanted)

    def fit(steps: int) -> None:
        tell = lambda step, _steps, _note: told.__setitem__(step, time.perf_counter())  # noqa: E731
        worker.fit(start, wanted, original, steps, tell).on_cpu(for_a_while=True)

    with deterministic():
        fit(WARM_UP + 1)
        told.clear()
        took = _seconds(lambda: fit(steps), device)
    first = sorted(told)[len(told) // 2 - 1]  # from the middle on: steps as they are from then on
    step = (told[steps] - told[first]) / (steps - first)
    once = max(took - step * steps, 0)  # errors before and after, on up to 16 batches
    forward = _seconds(lambda: worker.advance(worker.regrouped, original), device)
    passes = 2 if options.scope == "block" else 3
    measured = 2 * forward * (min(batches, MEASURED) - 1)
    shared = (step * options.steps_for(tokens) + passes * forward * batches) / ranks.size
    per_layer = set_up + once + measured + shared
    return len(layout.layers) * per_layer


def _seconds(call: Callable[[], object], device: str) -> float:
    def wait() -> None:
        if "cuda" in str(device):
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


@contextmanager
def deterministic() -> Iterator[None]:
    """The same gradients every time, where an operation has such a form."""
    before, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # for finding mistakes: a twentieth of the time
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass has no such form
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = fills
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
