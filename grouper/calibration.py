"""What merging and fitness need to know of a layer's inputs: their second moment, from text or from the norm's weight alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grouper.in_memory import InMemoryModel

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class InputMoments:
    """second: [D + 1, D + 1] float64, E[x x^T] of what enters q/k/v, with a constant 1 appended to x (it multiplies biases).

    tokens: how many were averaged; 0 where the moments are a guess from weights.
    """

    second: Tensor
    tokens: int = 0

    @classmethod
    def from_norm(cls, gain: Tensor | None, bias: Tensor | None, hidden_size: int) -> "InputMoments":
        """Without text: the norm's output has about unit variance times its gain g: diag(g^2), plus b b^T for a LayerNorm's bias b."""
        gain = torch.ones(hidden_size) if gain is None else gain
        second = torch.diag(torch.cat([gain.double() ** 2, torch.ones(1, dtype=torch.float64)]))
        if bias is not None:
            mean = torch.cat([bias.double(), torch.ones(1, dtype=torch.float64)])
            second = torch.diag(torch.cat([gain.double() ** 2, torch.zeros(1, dtype=torch.float64)])) + torch.outer(mean, mean)
        return cls(second)


@torch.inference_mode()
def collect_moments(model: InMemoryModel, windows: Tensor, progress: Callable[[int, int], None] | None = None) -> list[InputMoments]:
    """One pass over text: per layer E[x x^T] of what enters q/k/v. windows: [n, tokens] ids.

    Products are float32 (on the GPU where the model is there), sums float64; no activation is kept.
    """
    layers = model.architecture.layers
    sums = [0.0] * layers
    hooks = []
    for layer in range(layers):

        def add(_module, inputs, layer: int = layer) -> None:
            x = inputs[0].flatten(0, -2).float()
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)  # [tokens, D + 1]
            sums[layer] = sums[layer] + (x.T @ x).double()

        hooks.append(model.query_projection(layer).register_forward_pre_hook(add))
    try:
        batches = windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
        for done, batch in enumerate(batches, 1):
            model.model.get_decoder()(input_ids=batch.to(model.device), use_cache=False)
            if progress:
                progress(done, len(batches))
    finally:
        for hook in hooks:
            hook.remove()
    return [InputMoments((total / windows.numel()).cpu(), windows.numel()) for total in sums]
