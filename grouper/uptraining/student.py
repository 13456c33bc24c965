"""Exported model in training: the original's class with shared heads in place of its attention."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from grouper.attention import MergedLayer
from grouper.layout import HeadLayout
from grouper.running.in_memory import InMemoryModel
from grouper.uptraining.adapters import add_adapters, fold_adapters
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods.method import TrainingMethod
from grouper.uptraining.sharded import fill, whole
from grouper.uptraining.shared_attention import SharedAttention


class Student:
    """Model in training. `model` is a transformers model with the parameters of the exported folder, in float32; shared
    heads are held once. Image towers, and parameters that the checkpoint stores differently (stacked experts), are not
    trained. lora: rank of adapters that are trained instead of these parameters, and folded into them by `fold`."""

    def __init__(self, exported: ExportedModel, method: TrainingMethod, device: str, lora: int = 0, seed: int = 0):
        self.exported, self.loaded = exported, InMemoryModel(exported.base, device)
        self.model = self.loaded.model
        self.architecture = self.loaded.architecture
        self.others: list[list[str]] = []  # for each layer, names of its other trained parameters
        for index, layout in enumerate(exported.layout.layers):
            block, done, path = self.loaded.layer(index), exported.layer(index), self._path(index)
            attention = method.attention(block.get_submodule(path), exported, index, done.attention, layout).to(device)
            block.set_submodule(path, attention)
            parameters = self._parameters(index)
            called = self.architecture.family_of(index).class_name
            self.others.append([n for n in done.others if called(n) in parameters])
            for name in self.others[-1]:
                parameters[called(name)].data = done.others[name].to(device, torch.float32)
        known = self.loaded.around()
        self.loaded.replace_around({n: t for n, t in exported.around().items() if n in known})
        self.model.requires_grad_(False)
        for _, parameter in self.named_parameters():
            parameter.requires_grad_(not lora)
        self.lora = lora > 0
        if lora:
            add_adapters(self.model, lora, seed)

    def _path(self, layer: int) -> str:
        """Path of the attention within its layer."""
        return self.architecture.family_of(layer).in_class.attention

    def _parameters(self, layer: int) -> dict[str, nn.Parameter]:
        """Parameters of the attention's layer, by name within it, including those left in the original's attention
        module."""
        stayed = self.attention(layer).inner.named_parameters()
        block, path = self.loaded.layer(layer), self._path(layer)
        return {**dict(block.named_parameters()), **{f"{path}.{name}": parameter for name, parameter in stayed}}

    def attention(self, layer: int) -> SharedAttention:
        """Shared heads that replaced the class's attention."""
        return cast(SharedAttention, self.loaded.layer(layer).get_submodule(self._path(layer)))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trained parameters, by names that are the same in every run."""
        if not self.lora:
            return self.named_parameters()
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def checkpoint_activations(self) -> None:
        """Keep only the input of each layer; other activations are recomputed in the backward pass."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in self.model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.training = True  # enables checkpointing; inner modules stay in eval mode, without dropout
                for told in (module, getattr(module, "config", module)):
                    vars(told).update({n: 0.0 for n, v in vars(told).items() if "drop" in n and isinstance(v, float)})

    def fold(self) -> None:
        """Fold adapters into the weights, and remove them."""
        if self.lora:
            fold_adapters(self.model)
            self.lora = False

    @property
    def attentions(self) -> list[SharedAttention]:
        return [self.attention(layer) for layer in range(self.architecture.layers)]

    @property
    def layout(self) -> HeadLayout:
        """Current layout, which a method may change."""
        return replace(self.exported.layout, layers=tuple(a.layout for a in self.attentions))

    def _others(self, layer: int) -> dict[str, nn.Parameter]:
        parameters = self._parameters(layer)
        called = self.architecture.family_of(layer).class_name
        return {name: parameters[called(name)] for name in self.others[layer]}

    def _around(self) -> dict[str, nn.Parameter]:
        """Parameters outside the layers; only those of the language model if it is part of a larger one."""
        found = self.loaded.around()
        if not self.architecture.nested:
            return found
        stem = self.architecture.prefix(self.loaded.checkpoint, 0)
        stem = stem.removesuffix(self.architecture.family.layer.format(layer=0))
        return {n: p for n, p in found.items() if n.startswith(stem) or n.endswith("lm_head.weight")}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter that is written at the end, once, in a fixed order."""
        seen = set()
        for name, parameter in self._every_parameter():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def _every_parameter(self) -> Iterator[tuple[str, nn.Parameter]]:
        for layer, attention in enumerate(self.attentions):
            yield from ((f"{layer}.attention.{n}", p) for n, p in attention.own_parameters())
            yield from ((f"{layer}.{n}", p) for n, p in self._others(layer).items())
        yield from self._around().items()

    def buffers(self) -> dict[str, Tensor]:
        """Buffers of the training method."""
        layers = enumerate(self.attentions)
        every = ((f"{layer}.attention.{n}", t) for layer, attention in layers for n, t in attention.own_buffers())
        return dict(every)

    # Saved state

    def state(self, kept: bool = True) -> dict[str, Tensor]:
        """State to save: whole tensors on the CPU. If ranks hold them in parts, all ranks must call this. kept: whether
        this rank needs the tensors."""
        tensors = {f"weight.{n}": whole(p, kept) for n, p in self.trained()}
        return tensors | {f"buffer.{n}": t.detach().cpu() for n, t in self.buffers().items()}

    @torch.no_grad()
    def put(self, tensors: dict[str, Tensor], layout: str) -> None:
        """Restore the tensors of `state`, and the layout of that time, as JSON."""
        for name, parameter in self.trained():
            fill(parameter, tensors[f"weight.{name}"])
        for name, buffer in self.buffers().items():
            buffer.copy_(tensors[f"buffer.{name}"])
        for attention, one in zip(self.attentions, HeadLayout.from_json(layout).layers):
            attention.layout = one

    # Result

    @torch.no_grad()
    def layer(self, layer: int) -> MergedLayer:
        """Current weights of a layer, on the CPU."""
        others = {name: parameter.detach().cpu() for name, parameter in self._others(layer).items()}
        return MergedLayer(self.attentions[layer].finished(), others)

    def around(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu() for name, parameter in self._around().items()}
