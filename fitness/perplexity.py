"""Nats per token on text: what a layout really costs."""

import torch
from torch import Tensor

BATCH_TOKENS = 4096


@torch.inference_mode()
def nll(model, windows: Tensor) -> float:
    """Mean negative log-likelihood in nats of each window's tokens but the first. windows: [n, tokens] ids.

    Windows do not overlap, so every token is counted once, with at least its window's beginning as context. Sums are
    float64.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in windows.split(max(1, BATCH_TOKENS // windows.shape[1])):
        batch = batch.to(device)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        total += losses.double().sum().item()
        count += losses.numel()
    return total / count
