"""The residual stream of a model over text: where it is kept, and what enters the first layer."""

import math
import tempfile
from contextlib import suppress

import torch
from torch import Tensor

from grouper.model.in_memory import InMemoryModel
from grouper.model.memory import free_memory

Arguments = tuple[tuple, dict]  # positional and by name


@torch.no_grad()
def first_inputs(model: InMemoryModel, windows: Tensor, device: str) -> tuple[Tensor, list[Arguments]]:
    """What enters the first layer [n, tokens, D] in float32, and the arguments that each layer gets beside it, for one
    window."""
    arguments: list[Arguments] = []
    hooks = []

    def keep(_module, inputs, kwargs) -> None:
        kwargs = {
            k: v for k, v in kwargs.items() if k not in ("past_key_values", "layer_past", "use_cache", "hidden_states")
        }
        positional = inputs if "hidden_states" in kwargs else inputs[1:]
        arguments.append((moved(tuple(positional), device), {k: moved(v, device) for k, v in kwargs.items()}))

    for layer in range(model.architecture.layers):
        hooks.append(model.layer(layer).register_forward_pre_hook(keep, with_kwargs=True))
    try:
        model.decoder(input_ids=windows[:1].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()

    class Enough(Exception):
        pass

    stream = room((*windows.shape, model.architecture.hidden_size), device)
    done = 0

    def stop(_module, inputs, kwargs):
        stream[done : done + len(batch)] = (inputs[0] if inputs else kwargs["hidden_states"]).to(stream)
        raise Enough

    hook = model.layer(0).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for batch in windows.split(64):
            with suppress(Enough):
                model.decoder(input_ids=batch.to(model.device), use_cache=False)
            done += len(batch)
    finally:
        hook.remove()
    return stream, arguments


def moved(value, device):
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(moved(v, device) for v in value) if isinstance(value, tuple | list) else value


def room(shape: tuple[int, ...], device: str) -> Tensor:
    """Uninitialised float32: on the GPU where a tenth of its free memory is enough, in main memory where a third is,
    else on disk."""
    elements = math.prod(shape)
    if "cuda" in str(device) and 4 * elements < torch.cuda.mem_get_info()[0] / 10:
        return torch.empty(shape, device=device)
    if 4 * elements < free_memory() / 3:
        return torch.empty(shape)
    with tempfile.NamedTemporaryFile(
        prefix="grouper-stream-"
    ) as file:  # the name goes at once, the space with the tensor
        return torch.from_file(file.name, shared=True, size=elements, dtype=torch.float32).view(shape)
