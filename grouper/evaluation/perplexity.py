"""Loss of a transformers model on text, in nats per token."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from grouper.running.batch import Batch
from grouper.threads import side_by_side

BATCH_TOKENS = (512, 4096)  # tokens per pass: for each thread of a CPU, for a GPU


@torch.inference_mode()
def nll(model: nn.Module, windows: Tensor) -> float:
    """Mean negative log-likelihood in nats over each window's tokens except the first. windows: [n, tokens] ids.

    Windows do not overlap, so every token is counted once, with at least its window's beginning as context. Sums are
    float64.
    """
    device = str(next(model.parameters()).device)

    def loss(part: slice) -> float:
        logits = model(input_ids=windows[part].to(device), use_cache=False).logits[:, :-1].float()
        wanted = windows[part, 1:].to(logits.device)
        return cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").double().sum().item()

    losses = list(side_by_side(loss, batches(windows, device), device))
    return sum(losses) / windows[:, 1:].numel()


def batches(windows: Tensor | Batch, device: str) -> list[slice]:
    """Slices of windows [n, tokens, ...] that are run in one pass."""
    size = max(1, BATCH_TOKENS[torch.device(device).type == "cuda"] // windows.shape[1])
    return [slice(i, i + size) for i in range(0, len(windows), size)]
