"""Nats per token on text: what a layout really costs."""

import threading
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from grouper.attention import Merged
from grouper.calibration.streams import first_inputs, run_layer, stubs
from grouper.layout import HeadLayout
from grouper.model.in_memory import exchanged
from grouper.model.layers import Layers
from grouper.threads import side_by_side

BATCH_TOKENS = (512, 4096)  # of what is run at once: by each thread of a CPU, by a GPU


@torch.inference_mode()
def nll(model: nn.Module, windows: Tensor) -> float:
    """Mean negative log-likelihood in nats of each window's tokens but the first. windows: [n, tokens] ids.

    Windows do not overlap, so every token is counted once, with at least its window's beginning as context. Sums are
    float64.
    """
    device = next(model.parameters()).device
    return _mean(windows, lambda part: model(input_ids=windows[part].to(device), use_cache=False).logits, device)


@torch.no_grad()
def streamed_nll(
    model: Layers,
    windows: Tensor,
    layout: HeadLayout | None = None,
    merged: Merged | None = None,
) -> float:
    """The same, layer by layer: of the model as it came, or under a layout with these merged weights. One layer is in
    memory at a time."""
    stream, arguments = first_inputs(model, windows, model.device)
    for layer, given in enumerate(arguments):
        with model.loaded(layer) as block:
            if layout is not None:
                with exchanged(model, block, merged(layer), layout.layers[layer]):
                    _advance(block, stream, given, model.device)
            else:
                _advance(block, stream, given, model.device)
    here = threading.local()  # the stream behind the last layer, of the batch that this thread is at

    def logits(part: slice) -> Tensor:
        here.stream = stream[part].to(model.device)
        return model.model(input_ids=windows[part].to(model.device), use_cache=False).logits

    with torch.inference_mode(), stubs(model, lambda _layer, _inputs, _kwargs: here.stream):
        return _mean(windows, logits, model.device)


def _advance(block: nn.Module, stream: Tensor, arguments: tuple, device: str) -> None:
    def advance(part: slice) -> None:
        stream[part] = run_layer(block, stream[part].to(device), arguments).to(stream)

    deque(side_by_side(advance, _batches(stream, device), device), maxlen=0)


def _batches(windows: Tensor, device: str) -> list[slice]:
    size = max(1, BATCH_TOKENS[torch.device(device).type == "cuda"] // windows.shape[1])
    return [slice(i, i + size) for i in range(0, len(windows), size)]


def _mean(windows: Tensor, logits_of: Callable[[slice], Tensor], device: str) -> float:
    """logits_of: of a slice of the windows, [n, tokens, vocabulary]."""

    def loss(part: slice) -> float:
        logits = logits_of(part)[:, :-1].float()
        wanted = windows[part, 1:].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        return losses.double().sum().item()

    return sum(side_by_side(loss, _batches(windows, device), device)) / windows[:, 1:].numel()
