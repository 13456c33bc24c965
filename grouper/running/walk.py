"""Walk of a model over a batch: its residual stream, layer by layer. No other module runs the layers of a model.

A model of several stacks (an encoder, then a decoder) is walked stack by stack. The stream into a stack and the other
arguments of its layers are found by running the model with stubs in the place of its layers. Models in memory and
streamed ones, decoders and encoders are therefore walked alike.
"""

import copy
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from grouper.families.sites import Place
from grouper.model.memory import free_memory
from grouper.running.batch import Batch
from grouper.running.layers import Layers
from grouper.running.stub_layers import Arguments, Enough, arguments_of, call, given_beside, stream_of, stubs
from grouper.threads import side_by_side

ENTERING = 64  # examples whose stream into the first layer is computed at a time


class Walk:
    """Residual stream of a batch at one layer of a model. Iterate over it to get a Step for each layer in order; the
    caller advances the stream before asking for the next step.

    stream: [n, tokens, D] in float32, the input of the current layer. mask: True at its non-padding positions [n,
    tokens]; None if nothing is padded. parts: examples that pass a layer together. alike: whether layers have the same
    other arguments for all examples; `arguments` then holds them once, else for each part.
    """

    def __init__(self, model: Layers, batch: Tensor | Batch, size: int, device: str | None = None):
        """Prepare a walk over a batch. size: examples per part. device: where layers run (default: the device of the
        model)."""
        self.model, self.batch, self.device = model, Batch.of(batch), device or model.device
        self.parts = [slice(i, i + size) for i in range(0, len(self.batch), size)]
        self.alike = self.batch.read is None and not model.architecture.family.parts
        self.stream = torch.empty(0)
        self.mask: Tensor | None = None
        self.arguments: list[list[Arguments]] = []  # by layer of the stack, by part
        self.entered = -1  # number of the stack

    def copy(self) -> "Walk":
        """Copy of the walk with a stream of its own."""
        other = copy.copy(self)
        other.stream = room(self.stream.shape, self.device).copy_(self.stream)
        return other

    def __len__(self) -> int:
        return len(self.batch)

    def __iter__(self) -> Iterator["Step"]:
        for place in self.model.architecture.places:
            yield self.at(place)

    def at(self, place: Place) -> "Step":
        """Step at this layer. If it begins a stack, the stream into the stack is computed first."""
        if place[0].stack != self.entered:
            self._enter(place[0].stack)
        return Step(self, place)

    def start(self) -> "Walk":
        """Compute the stream into the first layer."""
        self._enter(0)
        return self

    # Entering a stack

    @torch.no_grad()
    def _enter(self, stack: int) -> None:
        behind, self.entered, self.stream = self.stream, stack, torch.empty(0)
        places = [place for place in self.model.architecture.places if place[0].stack == stack]
        self.arguments, size = [[] for _ in places], self.parts[0].stop if self.parts else 1
        if self.alike and len(self.batch):
            _, self.arguments = self._entering(places, slice(0, 1), behind)
            size = ENTERING
        for begin in range(0, len(self.batch), size):
            part = slice(begin, begin + size)
            stream, found = self._entering(places, part, behind, only_stream=self.alike)
            if not len(self.stream):
                self.stream = room((len(self.batch), *stream.shape[1:]), self.device)
            self.stream[part] = stream.to(self.stream)
            for of_layer, of_part in zip(self.arguments, () if self.alike else found):
                of_layer += of_part
        beside, values = given_beside(self.model), given_beside(self.model)[stack]
        beside[stack] = None if values is None else (None,) * len(values)  # only their number is known
        self.mask = self.batch.written if stack else self.batch.read

    def _entering(
        self, places: list[Place], part: slice, behind: Tensor, only_stream: bool = False
    ) -> tuple[Tensor, list[list[Arguments]]]:
        """Stream into the first of these layers [examples, tokens, D], and the other arguments of each, for one part.
        behind: stream after the previous stack."""
        found: list[list[Arguments]] = []
        model, entered = self.model, []
        every, beside = model.architecture.places, given_beside(model)
        first, last, before = places[0], places[-1], every[every.index(places[0]) - 1]
        real = model.layer(first[0].index).forward

        def instead(place: Place, inputs: tuple, named: dict[str, Any]) -> Tensor:
            stream = stream_of(inputs, named)
            if place[0].stack < first[0].stack:
                return behind[part].to(stream) if place is before else stream
            if place is first:
                entered.append(stream)
                if only_stream:
                    raise Enough
                if model.architecture.family.encodes:  # its output may enter the arguments of later modules
                    with model.loaded(first[0].index):
                        output = real(*inputs, **named)
                    beside[first[0].stack] = tuple(output[1:]) if isinstance(output, tuple) else None
            found.append([arguments_of(inputs, named, self.device)])
            if place is last:
                raise Enough
            return stream

        with stubs(model, instead), suppress(Enough):
            call(model, self.batch[part])
        return entered[0], found


class Step:
    """Walk at one layer. sites: its attentions. arguments: for each part, or once for all examples."""

    def __init__(self, walk: Walk, place: Place):
        self.walk, self.sites, self.index = walk, place, place[0].index
        self.arguments = walk.arguments[place[0].layer]

    def loaded(self) -> AbstractContextManager[nn.Module]:
        """Context in which the layer has its weights."""
        return self.walk.model.loaded(self.index)

    def arguments_of(self, number: int) -> Arguments:
        """Arguments of the layer for a part, besides the stream."""
        return self.arguments[0 if self.walk.alike else number]

    def mask_of(self, number: int) -> Tensor | None:
        mask = self.walk.mask
        return None if mask is None else mask[self.walk.parts[number]].to(self.walk.device)

    def through(self, module: nn.Module, number: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Stream of a part after the layer, on the device."""
        stream = self.walk.stream[self.walk.parts[number]]
        return run_layer(module, stream.to(self.walk.device, dtype), self.arguments_of(number))

    def put(self, number: int, stream: Tensor) -> None:
        """Replace the stream of a part."""
        self.walk.stream[self.walk.parts[number]] = stream.to(self.walk.stream)

    @torch.no_grad()
    def advance(
        self, module: nn.Module, dtype: torch.dtype = torch.float32, numbers: Sequence[int] | None = None
    ) -> None:
        """Move the stream through the layer, part by part; on a CPU several parts at a time. numbers: parts to move
        (default: all)."""

        def one(number: int) -> None:
            self.put(number, self.through(module, number, dtype))

        numbers = range(len(self.walk.parts)) if numbers is None else numbers
        for _ in side_by_side(one, numbers, self.walk.device):
            pass


def run_layer(module: nn.Module, stream: Tensor, arguments: Arguments) -> Tensor:
    """Stream after the layer [examples, tokens, D]."""
    positional, named = arguments
    if named.get("alibi") is not None and named["alibi"].ndim == 3:  # [H, 1, tokens] of one window
        named = {**named, "alibi": named["alibi"].repeat(len(stream), 1, 1)}
    output = module(stream, *positional, **named)
    return output[0] if isinstance(output, tuple) else output


def room(shape: tuple[int, ...], device: str) -> Tensor:
    """Uninitialised float32 tensor: on the GPU if it takes at most a quarter of the free memory there, in main memory
    if it takes at most a third, else on disk, where files there can be mapped."""
    elements = math.prod(shape)
    if "cuda" in str(device) and 4 * elements < torch.cuda.mem_get_info()[0] / 4:
        return torch.empty(shape, device=device)
    if 4 * elements >= free_memory() / 3:
        with (
            suppress(RuntimeError, OSError, ValueError),  # a disk whose files cannot be mapped; Windows
            tempfile.NamedTemporaryFile(prefix="grouper-stream-") as file,  # the name goes at once, the space later
        ):
            return torch.from_file(file.name, shared=True, size=elements, dtype=torch.float32).view(shape)
    return torch.empty(shape)
