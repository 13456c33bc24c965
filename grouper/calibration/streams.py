"""The residual stream of a model over text: what enters the first layer, where it is kept, how it passes a layer."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from grouper.model.layers import Layers
from grouper.model.memory import free_memory

Arguments = tuple[tuple, dict]  # positional and by name
NOT_OURS = ("past_key_values", "layer_past", "cache", "use_cache", "hidden_states")


class _Enough(Exception):
    """What was looked for is known."""


@torch.no_grad()
def first_inputs(model: Layers, windows: Tensor, device: str) -> tuple[Tensor, list[Arguments]]:
    """What enters the first layer [n, tokens, D] in float32, and the arguments that each layer gets beside it, for one
    window. No layer is run."""
    arguments: list[Arguments] = []

    def keep(_layer: int, inputs: tuple, kwargs: dict) -> Tensor:
        arguments.append(_arguments(inputs, kwargs, device))
        return stream_of(inputs, kwargs)

    with stubs(model, keep):
        model.decoder(input_ids=windows[:1].to(model.device), use_cache=False)
    stream = room((*windows.shape, model.architecture.hidden_size), device)
    done = 0

    def stop(_layer: int, inputs: tuple, kwargs: dict) -> Tensor:
        stream[done : done + len(batch)] = stream_of(inputs, kwargs).to(stream)
        raise _Enough

    with stubs(model, stop):
        for batch in windows.split(64):
            with suppress(_Enough):
                model.decoder(input_ids=batch.to(model.device), use_cache=False)
            done += len(batch)
    return stream, arguments


def stream_of(inputs: tuple, kwargs: dict) -> Tensor:
    return inputs[0] if inputs else kwargs["hidden_states"]


@contextmanager
def stubs(model: Layers, call: Callable[[int, tuple, dict], Tensor]) -> Iterator[None]:
    """Every layer is replaced by `call`(layer, inputs, kwargs), which returns the stream behind it."""
    layers = [model.layer(i) for i in range(model.architecture.layers)]
    wraps = _gives_tuples(model)

    def stub(layer: int):
        def forward(*inputs, **kwargs):
            stream = call(layer, inputs, kwargs)
            return (stream,) if wraps else stream

        return forward

    try:
        for i, module in enumerate(layers):
            module.forward = stub(i)
        yield
    finally:
        for module in layers:
            vars(module).pop("forward", None)


def _gives_tuples(model: Layers) -> bool:
    """Whether this class's layers return tuples that begin with the stream. Found out once, without running one: from a
    bare stream [1, 2, D] in its place, the model takes the first row."""
    if "gives_tuples" not in vars(model):
        came: list[int] = []

        def stub(*inputs, **kwargs) -> Tensor:
            came.append(stream_of(inputs, kwargs).ndim)
            if len(came) == 2:
                raise _Enough
            return stream_of(inputs, kwargs)

        layers = [model.layer(i) for i in range(model.architecture.layers)]
        try:
            for module in layers:
                module.forward = stub
            with suppress(_Enough):
                came.append(model.decoder(inputs_embeds=_embedded(model, 2), use_cache=False)[0].ndim)
        finally:
            for module in layers:
                vars(module).pop("forward", None)
        model.gives_tuples = came[1] < 3
    return model.gives_tuples


@torch.no_grad()
def stub_arguments(model: Layers, tokens: int) -> list[Arguments]:
    """The arguments that each layer gets beside a stream [1, tokens, D]; no layer is run, nothing is embedded."""
    arguments: list[Arguments] = []

    def keep(_layer: int, inputs: tuple, kwargs: dict) -> Tensor:
        arguments.append(_arguments(inputs, kwargs, model.device))
        return stream_of(inputs, kwargs)

    with stubs(model, keep):
        model.decoder(inputs_embeds=_embedded(model, tokens), use_cache=False)
    return arguments


def _embedded(model: Layers, tokens: int) -> Tensor:
    """What tokens may look like behind the embedding: zeros, as wide as that is."""
    width = model.model.get_input_embeddings().embedding_dim
    return torch.zeros(1, tokens, width, dtype=model.dtype, device=model.device)


def _arguments(inputs: tuple, kwargs: dict, device: str) -> Arguments:
    kept = {k: moved(v, device) for k, v in kwargs.items() if k not in NOT_OURS}
    return moved(tuple(inputs if "hidden_states" in kwargs else inputs[1:]), device), kept


def run_layer(module: nn.Module, stream: Tensor, arguments: Arguments) -> Tensor:
    """The stream [windows, tokens, D] behind the layer."""
    positional, named = arguments
    if named.get("alibi") is not None and named["alibi"].ndim == 3:  # [H, 1, tokens] of one window
        named = {**named, "alibi": named["alibi"].repeat(len(stream), 1, 1)}
    output = module(stream, *positional, **named)
    return output[0] if isinstance(output, tuple) else output


def moved(value, device):
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(moved(v, device) for v in value) if isinstance(value, tuple | list) else value


def room(shape: tuple[int, ...], device: str) -> Tensor:
    """Uninitialised float32: on the GPU where a quarter of its free memory is enough, in main memory where a third is,
    else on disk."""
    elements = math.prod(shape)
    if "cuda" in str(device) and 4 * elements < torch.cuda.mem_get_info()[0] / 4:
        return torch.empty(shape, device=device)
    if 4 * elements < free_memory() / 3:
        return torch.empty(shape)
    with tempfile.NamedTemporaryFile(
        prefix="grouper-stream-"
    ) as file:  # the name goes at once, the space with the tensor
        return torch.from_file(file.name, shared=True, size=elements, dtype=torch.float32).view(shape)
