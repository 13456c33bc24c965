"""Model with stubs in place of its layers, to find out the arguments of layers, or to compute only the head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from grouper.families.sites import Place
from grouper.running.batch import Batch
from grouper.running.layers import Layers

Arguments = tuple[tuple, dict[str, Any]]  # positional and named, without the stream
NOT_OURS = ("past_key_values", "layer_past", "cache", "use_cache", "hidden_states")


class Enough(Exception):
    """Raised to end a pass early, once the required values are known."""


def call(model: Layers, batch: Batch) -> Any:
    """Output of the model; for a decoder alone, that of its last norm."""
    family = model.architecture.family
    given = batch.called_with(model.device, model.dtype, bool(family.parts))
    uncached = {"use_cache": False} if family.parts or not family.encodes else {}
    return (model.model if family.encodes else model.decoder)(**given, **uncached)


def stream_of(inputs: tuple, named: dict[str, Any]) -> Tensor:
    """The residual stream among the arguments of a layer."""
    return inputs[0] if inputs else named["hidden_states"]


def arguments_of(inputs: tuple, named: dict[str, Any], device: str) -> Arguments:
    """The other arguments, on the device, without caches."""
    kept = {name: moved(value, device) for name, value in named.items() if name not in NOT_OURS}
    return moved(tuple(inputs if "hidden_states" in named else inputs[1:]), device), kept


def moved(value: Any, device: str | torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(moved(v, device) for v in value) if isinstance(value, tuple | list) else value


@contextmanager
def stubs(model: Layers, instead: Callable[[Place, tuple, dict[str, Any]], Tensor]) -> Iterator[None]:
    """Replace every layer by `instead`(its attentions, inputs, named), which returns the stream after the layer."""
    modules = [model.layer(place[0].index) for place in model.architecture.places]
    extras = given_beside(model)

    def stub(place: Place) -> Callable:
        def forward(*inputs: Any, **named: Any) -> Any:
            stream = instead(place, inputs, named)
            beside = extras[place[0].stack]
            return stream if beside is None else (stream, *beside)

        return forward

    try:
        for place, module in zip(model.architecture.places, modules):
            module.forward = stub(place)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def passed_on(_place: Place, inputs: tuple, named: dict[str, Any]) -> Tensor:
    """A stub that returns the stream unchanged."""
    return stream_of(inputs, named)


# Values that layers return after the stream


def given_beside(model: Layers) -> list[tuple | None]:
    """Values that the layers of each stack return after the stream: None if they return the stream alone, else the rest
    of the tuple. For a decoder this follows from its class, for an encoder it is known once one layer was run."""
    if model.beside is None:
        model.beside = [None, None] if model.architecture.family.encodes else [() if _gives_tuples(model) else None]
    return model.beside


def _gives_tuples(model: Layers) -> bool:
    """Whether this class's layers return tuples that begin with the stream. No layer is run for this: the stubs return
    a bare stream [1, 2, D], and a model that expects a tuple takes its first row."""
    dimensions: list[int] = []

    def stub(*inputs: Any, **named: Any) -> Tensor:
        dimensions.append(stream_of(inputs, named).ndim)
        if len(dimensions) == 2:
            raise Enough
        return stream_of(inputs, named)

    modules = [model.layer(place[0].index) for place in model.architecture.places]
    try:
        for module in modules:
            module.forward = stub
        with suppress(Enough):
            dimensions.append(model.decoder(inputs_embeds=embedded(model, 2), use_cache=False)[0].ndim)
    finally:
        for module in modules:
            vars(module).pop("forward", None)
    return dimensions[1] < 3


def embedded(model: Layers, tokens: int) -> Tensor:
    """Zeros in place of embedded tokens [1, tokens, D]."""
    width = cast(nn.Embedding, model.model.get_input_embeddings()).embedding_dim
    return torch.zeros(1, tokens, width, dtype=model.dtype, device=model.device)


@torch.no_grad()
def stub_arguments(model: Layers, tokens: int) -> list[Arguments]:
    """Arguments that each layer of a decoder gets in addition to a stream [1, tokens, D]. No layer is run, and nothing
    is embedded."""
    arguments: list[Arguments] = []

    def keep(place: Place, inputs: tuple, named: dict[str, Any]) -> Tensor:
        arguments.append(arguments_of(inputs, named, model.device))
        return stream_of(inputs, named)

    with stubs(model, keep):
        model.decoder(inputs_embeds=embedded(model, tokens), use_cache=False)
    return arguments
