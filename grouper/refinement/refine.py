"""Layer-wise reconstruction after a merge: the shared K and V heads, q and o learn to give what the original layer gave.

Layers are taken in order. Two residual streams run side by side over the calibration text: the original's, and the regrouped model's, which
has the errors of the layers before it. At each layer, Adam fits that layer's q, shared k, shared v and o so that the regrouped stream after
it matches the original's. No labels, no backward pass through the model, memory for one layer at a time.

Scope "attention" matches the stream after the attention sublayer and trains its projections; scope "block" matches the stream after the
whole layer and trains its MLP and norms along, more gently (not experts that the class keeps stacked: they stay as they are).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from grouper.attention import Attention, MergedLayer
from grouper.calibration.streams import first_inputs, room
from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.model.in_memory import InMemoryModel
from grouper.refinement.layer import LayerWorker, RefineOptions
from grouper.refinement.saved import load_layer, save_layer

Progress = Callable[[int, int, int, int, float], None]  # layer, layers, step, steps, loss


def refine(
    model: InMemoryModel,
    layout: HeadLayout,
    merged: Callable[[int], Attention],
    windows: Tensor,
    options: RefineOptions | None = None,
    *,
    device: str | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[MergedLayer]:
    """Refine layer by layer; a layer that training does not improve stays as merged.

    model: the original; it may stay on the CPU while layers are worked on `device` one by one. merged(layer): the start. windows: [n, tokens]
    ids of calibration text. folder: where finished layers are kept, so that a killed refinement goes on with the next one.
    The same call gives the same weights on the same machine.
    """
    options = options or RefineOptions()
    if options.scope not in ("attention", "block"):
        raise GrouperError(f"unknown scope {options.scope!r}: expected attention or block")
    device = device or model.device
    model.restore()
    steps = options.steps_for(windows.numel())
    original, arguments = first_inputs(model, windows, device)
    regrouped = room(original.shape, device).copy_(original)
    refined = []
    with deterministic():
        for layer, heads in enumerate(layout.layers):
            worker = LayerWorker(model, layer, heads, arguments[layer], device, options)
            path = None if folder is None else folder / f"layer-{layer:03}.safetensors"
            if path is not None and path.is_file():
                done = load_layer(path, merged(layer))
                worker.set(done)
            else:
                tell = (
                    (lambda step, loss, layer=layer: progress(layer, len(layout.layers), step, steps, loss))
                    if progress
                    else None
                )
                done = worker.fit(merged(layer), original, regrouped, steps, tell)
                if path is not None:
                    save_layer(path, done)
            refined.append(done)
            worker.advance(original, regrouped)
    return refined


def estimate_seconds(
    model: InMemoryModel,
    layout: HeadLayout,
    merged: Callable[[int], Attention],
    windows: Tensor,
    options: RefineOptions,
    device: str,
) -> float:
    """What `refine` will take, from a few steps on the first layer."""
    model.restore()
    per_step = max(1, options.batch_tokens // windows.shape[1])
    few = windows[: max(per_step, 1)]
    original, arguments = first_inputs(model, few, device)
    worker = LayerWorker(model, 0, layout.layers[0], arguments[0], device, replace(options, steps=1))
    start = merged(0)
    worker.fit(start, original, original, 1, None)
    began = time.perf_counter()
    worker.fit(start, original, original, 3, None)
    fit = (time.perf_counter() - began) / 3
    began = time.perf_counter()
    worker.advance(original, original.clone())
    forward = (time.perf_counter() - began) * 2  # streams before and after, for the errors told
    steps = options.steps_for(windows.numel())
    return len(layout.layers) * (fit * steps + forward * windows.numel() / few.numel())


@contextmanager
def deterministic() -> Iterator[None]:
    """The same gradients every time, where an operation has such a form."""
    before, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass has no such form
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
