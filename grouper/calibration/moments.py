"""The second moments of every layer's inputs: one pass over text, layer by layer, and what was found kept on disk."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from grouper.calibration.input_moments import InputMoments
from grouper.calibration.streams import first_inputs, run_layer
from grouper.errors import GrouperError
from grouper.model.layers import Layers
from grouper.outputs import sweep_files
from grouper.progress import Progress, untold
from grouper.ranks import ALONE, Ranks
from grouper.threads import side_by_side

BATCH_TOKENS = 4096


@torch.no_grad()
def collect_moments(
    model: Layers, windows: Tensor, progress: Progress = untold, ranks: Ranks = ALONE
) -> Iterator[InputMoments]:
    """Layer by layer E[x x^T] of what enters q, k and v, and the K heads' inner products. windows: [n, tokens] ids.

    Products are float32 (on the GPU where the model is there, whose layers compute in bfloat16), sums float64, results
    rounded to float32; the residual stream is kept, and no other activation. Each of several ranks runs its portion of
    the batches; all get the whole sums.
    """
    architecture, gpu = model.architecture, "cuda" in str(model.device)
    tokens, inputs = windows.numel(), architecture.hidden_size + 1
    size = max(1, BATCH_TOKENS // windows.shape[1])
    windows = torch.cat([windows[:0], *ranks.portion(windows.split(size))])
    stream, arguments = first_inputs(model, windows, model.device) if len(windows) else (windows, [])
    for layer in range(architecture.layers):
        total = torch.zeros(inputs, inputs, dtype=torch.float64, device=model.device)
        keys, seen = [], threading.local()  # seen: what this thread's batch made the hooks see

        def add(_module, inputs, seen=seen) -> None:
            x = inputs[0].flatten(0, -2).float()
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)  # [tokens, D + 1]
            seen.product = x.T @ x

        def add_keys(_module, _inputs, output, seen=seen) -> None:
            k = architecture.key_outputs(output.float())  # [windows, G, d, tokens]
            seen.keys = torch.einsum("wgdt,whdt->wgh", k, k).cpu()

        def run(part: slice, seen=seen, layer: int = layer) -> tuple[Tensor, Tensor]:
            with torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext():
                behind = run_layer(model.layer(layer), stream[part].to(model.device), arguments[layer])
            stream[part] = behind.to(stream)
            return seen.product, seen.keys

        with model.loaded(layer):
            hooks = [
                model.query_projection(layer).register_forward_pre_hook(add),
                model.key_projection(layer).register_forward_hook(add_keys),
            ]
            try:
                parts = [slice(i, i + size) for i in range(0, len(windows), size)]
                for product, of_keys in side_by_side(run, parts, model.device):
                    total += product.double()
                    keys.append(of_keys)
            finally:
                for hook in hooks:
                    hook.remove()
        progress(layer + 1, architecture.layers, f"calibrating, layer {layer}")
        ranks.add_up(total)
        if not torch.isfinite(total).all():
            raise GrouperError(f"what enters layer {layer} is not finite: weights before it are damaged")
        keys = [part for of_rank in ranks.gather(keys) for part in of_rank]
        yield InputMoments((total / tokens).float().double().cpu(), tokens, torch.cat(keys))


class KeptMoments(Sequence[InputMoments]):
    """A folder with a file for each layer, read when asked for."""

    def __init__(self, folder: Path, layers: int):
        self.folder, self.layers = folder, layers

    def path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:03}.safetensors"

    def __len__(self) -> int:
        return self.layers

    def __getitem__(self, layer: int) -> InputMoments:
        if not 0 <= layer < self.layers:
            raise IndexError(layer)
        return InputMoments.load(self.path(layer))

    @property
    def complete(self) -> bool:
        return all(self.path(layer).is_file() for layer in range(self.layers))

    def keep(self, moments: Iterable[InputMoments], tell: Callable[[int], None] = lambda layer: None) -> "KeptMoments":
        """Write what comes, each file whole or not at all, and call `tell` with each layer that can be read. Where
        not all come, those that did stay, and the next ones are written over them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep_files(self.folder)
        for layer, inputs in enumerate(moments):
            inputs.save(self.path(layer))
            tell(layer)
        return self
