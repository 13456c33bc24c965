"""A transformers model whose layers are read from disk when their turn comes: for models that memory does not hold.

What stands around the layers (embedding, last norm, head) is in memory; the layers themselves are skeletons without
weights, and `loaded` gives one of them with its weights, the next one being read meanwhile. Such a model is walked
layer by layer over a residual stream (grouper.calibration.streams), by the same code as one that is in memory.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import nn

from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint, decoder_prefix
from grouper.model.layers import Layers
from grouper.model.one_layer import of_layer

State = dict[str, torch.Tensor]


class StreamedModel(Layers):
    """`model`: the skeleton. Layers come in float32."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu"):
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        self.checkpoint = checkpoint.local()
        self.architecture = Architecture.of(checkpoint.config)
        self.device, self.dtype = device, torch.float32
        auto = AutoModelForImageTextToText if self.architecture.nested else AutoModelForCausalLM
        config = AutoConfig.from_pretrained(self.checkpoint.folder)
        with init_empty_weights(include_buffers=False):
            self.model = auto.from_config(config, dtype=self.dtype).eval()
        self.prefix = decoder_prefix((n for n, _ in self.model.named_parameters()), self.layer_name(0))
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="layers")
        self._ahead: tuple[int, Future] | None = None
        self._fill_what_stands_around()

    def layer_name(self, layer: int) -> str:
        return self.architecture.family.layer.format(layer=layer)

    def _fill_what_stands_around(self) -> None:
        """Everything but the layers, through transformers' own loading, which knows renamed and tied tensors."""
        around = dict(self._one_layer(0, around=True).named_parameters())
        for name, parameter in list(self.model.named_parameters()):
            if parameter.is_meta and name in around and not name.startswith(self.prefix + self.layer_name(0)):
                owner, _, last = name.rpartition(".")
                self.model.get_submodule(owner)._parameters[last] = around[name].to(self.device).requires_grad_(False)
        self.model.tie_weights()
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(self.device)

    def _one_layer(self, layer: int, around: bool = False) -> nn.Module:
        """A model of this layer alone. around: with what stands around the layers, too; else that is left random."""
        a, checkpoint = self.architecture, self.checkpoint
        here, first = a.prefix(checkpoint, layer), a.prefix(checkpoint, 0)
        state = {first + n.removeprefix(here): checkpoint.tensor(n) for n in checkpoint.tensors if n.startswith(here)}
        if around:
            every = tuple(a.prefix(checkpoint, other) for other in range(a.layers))
            state |= {n: checkpoint.tensor(n) for n in checkpoint.tensors if not n.startswith(every)}
        config = of_layer(checkpoint.config, layer)
        if a.nested and isinstance(config.get("text_config"), dict):
            config["text_config"] = of_layer(config["text_config"], layer)
        config = type(self.model.config).from_dict(config)
        return type(self.model).from_pretrained(None, config=config, state_dict=state, dtype=self.dtype)

    def _state(self, layer: int) -> State:
        """The layer's tensors in float32, by their names in the module."""
        here, wanted = self.architecture.prefix(self.checkpoint, layer), dict(self.layer(layer).named_parameters())
        if all(here + name in self.checkpoint for name in wanted):
            return {name: self.checkpoint.tensor(here + name).to(self.dtype) for name in wanted}
        one = self._one_layer(layer)  # a class that stacks or renames what checkpoints hold
        module = one.get_submodule(self.prefix + self.layer_name(0).rstrip("."))
        return {name: parameter.detach() for name, parameter in module.named_parameters()}

    def _read(self, layer: int) -> State:
        """From the reader if it was sent for this layer; then it is sent for the next."""
        ahead, self._ahead = self._ahead, None
        state = ahead[1].result() if ahead and ahead[0] == layer else self._state(layer)
        if layer + 1 < self.architecture.layers:
            self._ahead = layer + 1, self._reader.submit(self._state, layer + 1)
        return state

    @contextmanager
    def loaded(self, layer: int) -> Iterator[nn.Module]:
        module = self.layer(layer)
        places = {name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
                  for name, _ in module.named_parameters()}  # fmt: skip
        empty = {name: owner._parameters[last] for name, (owner, last) in places.items()}
        try:
            for name, tensor in self._read(layer).items():
                owner, last = places[name]
                owner._parameters[last] = nn.Parameter(tensor.to(self.device), requires_grad=False)
            yield module
        finally:
            for name, (owner, last) in places.items():
                owner._parameters[last] = empty[name]
