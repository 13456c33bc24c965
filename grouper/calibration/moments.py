"""What merging and fitness need to know of a layer's inputs: their second moment, from text or from the norm's
weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grouper.errors import GrouperError
from grouper.model.in_memory import InMemoryModel
from grouper.outputs import write_file
from grouper.progress import Progress, untold

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class InputMoments:
    """second_moment: [D + 1, D + 1] float64, E[x x^T] of what enters q, k and v, with a constant 1 appended to x (it
    multiplies biases).

    tokens: how many were averaged; 0 where the moments are a guess from weights. keys: [windows, G, G] inner products
    of the K heads' outputs, summed over each window's tokens (for key-driven allocation); None without text.
    """

    second_moment: Tensor
    tokens: int = 0
    keys: Tensor | None = None

    @classmethod
    def from_norm(cls, gain: Tensor | None, bias: Tensor | None, hidden_size: int) -> "InputMoments":
        """Without text: the norm's output has about unit variance times its gain g, so diag(g^2), plus b b^T for a
        LayerNorm's bias b. gain, bias: [D], or None where there is none."""
        gain = torch.ones(hidden_size) if gain is None else gain
        one = torch.ones(1, dtype=torch.float64)
        mean = torch.cat([torch.zeros(hidden_size).double() if bias is None else bias.double(), one])
        return cls(torch.diag(torch.cat([gain.double() ** 2, 0 * one])) + torch.outer(mean, mean))


@torch.inference_mode()
def collect_moments(model: InMemoryModel, windows: Tensor, progress: Progress = untold) -> list[InputMoments]:
    """One pass over text: per layer E[x x^T] of what enters q, k and v, and the K heads' inner products. windows: [n,
    tokens] ids.

    Products are float32 (on the GPU where the model is there), sums float64, results rounded to float32; no activation
    is kept.
    """
    architecture = model.architecture
    sums = [0.0] * architecture.layers
    keys: list[list[Tensor]] = [[] for _ in sums]
    hooks = []
    for layer in range(architecture.layers):

        def add(_module, inputs, layer: int = layer) -> None:
            x = inputs[0].flatten(0, -2).float()
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)  # [tokens, D + 1]
            sums[layer] = sums[layer] + (x.T @ x).double()

        def add_keys(_module, _inputs, output, layer: int = layer) -> None:
            k = architecture.key_outputs(output.float())  # [windows, G, d, tokens]
            keys[layer].append(torch.einsum("wgdt,whdt->wgh", k, k).cpu())

        hooks.append(model.query_projection(layer).register_forward_pre_hook(add))
        hooks.append(model.key_projection(layer).register_forward_hook(add_keys))
    try:
        batches = windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
        for done, batch in enumerate(batches, 1):
            model.decoder(input_ids=batch.to(model.device), use_cache=False)
            progress(done, len(batches), "calibrating")
    finally:
        for hook in hooks:
            hook.remove()
    moments = ((total / windows.numel()).float().double().cpu() for total in sums)
    return [InputMoments(moment, windows.numel(), torch.cat(grams)) for moment, grams in zip(moments, keys)]


def save_moments(path: Path, moments: list[InputMoments]) -> None:
    """All layers in one file, float32: 2.1 GB for a model of 32 layers of 4096."""
    tensors = {}
    for layer, inputs in enumerate(moments):
        tensors |= {f"{layer}.second": inputs.second_moment.float(), f"{layer}.keys": inputs.keys}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda beside: save_file(tensors, beside, metadata={"tokens": str(moments[0].tokens)}))


def load_moments(path: Path) -> list[InputMoments]:
    """What save_moments wrote, to the bit. Raises GrouperError where the file is something else."""
    try:
        with safe_open(path, framework="pt") as file:
            tokens, layers = int(file.metadata()["tokens"]), len(file.keys()) // 2
            kept = ((file.get_tensor(f"{i}.second"), file.get_tensor(f"{i}.keys")) for i in range(layers))
            return [InputMoments(moment.double(), tokens, keys) for moment, keys in kept]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise GrouperError(f"{path} holds no kept calibration ({error}): delete it, and it is made again") from error
