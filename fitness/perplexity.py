"""Nats per token on text: what a layout really costs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from grouper.attention import Merged
from grouper.calibration.streams import first_inputs, logits_behind, run_layer
from grouper.layout import HeadLayout
from grouper.model.in_memory import exchanged
from grouper.model.layers import Layers

BATCH_TOKENS = 4096


@torch.inference_mode()
def nll(model: nn.Module, windows: Tensor) -> float:
    """Mean negative log-likelihood in nats of each window's tokens but the first. windows: [n, tokens] ids.

    Windows do not overlap, so every token is counted once, with at least its window's beginning as context. Sums are
    float64.
    """
    device = next(model.parameters()).device
    return _mean(windows, lambda part: model(input_ids=windows[part].to(device), use_cache=False).logits)


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
    return _mean(windows, lambda part: logits_behind(model, stream[part], windows[part]))


def _advance(block: nn.Module, stream: Tensor, arguments: tuple, device: str) -> None:
    for part in _batches(stream):
        stream[part] = run_layer(block, stream[part].to(device), arguments).to(stream)


def _batches(windows: Tensor) -> list[slice]:
    size = max(1, BATCH_TOKENS // windows.shape[1])
    return [slice(i, i + size) for i in range(0, len(windows), size)]


def _mean(windows: Tensor, logits_of: Callable[[slice], Tensor]) -> float:
    """logits_of: of a slice of the windows, [n, tokens, vocabulary]."""
    total, count = 0.0, 0
    for part in _batches(windows):
        logits = logits_of(part)[:, :-1].float()
        wanted = windows[part, 1:].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        total += losses.double().sum().item()
        count += losses.numel()
    return total / count
