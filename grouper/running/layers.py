"""Interface of a transformers model that is walked layer by layer, in memory or streamed from disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import nn

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.families.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Layers(ABC):
    """A transformers model as layers. model: the transformers model, perhaps without its layers' weights. prefix:
    prefix of the decoder's names in it. device, dtype: those of the layers that `loaded` yields."""

    checkpoint: Checkpoint
    architecture: Architecture
    model: PreTrainedModel
    prefix: str
    device: str
    dtype: torch.dtype
    beside: list[tuple | None] | None = None  # values that layers return after the stream, once known

    @abstractmethod
    def loaded(self, layer: int) -> AbstractContextManager[nn.Module]:
        """The layer with its weights, until the block ends. Access is fastest in order."""

    def layer(self, layer: int) -> nn.Module:
        """The layer that contains this attention."""
        site = self.architecture.sites[layer]
        return self.model.get_submodule(self.prefix + site.family.in_class.layer.format(layer=site.layer).rstrip("."))

    @property
    def decoder(self) -> nn.Module:
        """The module that turns tokens into the output of the last layer."""
        return self.model.get_submodule(self.prefix.rstrip(".")) if self.prefix else self.model

    def query_projection(self, layer: int) -> nn.Module:
        """Module whose input is the input of q, k and v."""
        return self.layer(layer).get_submodule(self.architecture.family_of(layer).in_class.storage.q)

    def key_projection(self, layer: int) -> nn.Module:
        """Module that computes k, with other projections if they are fused."""
        return self.layer(layer).get_submodule(self.architecture.family_of(layer).in_class.storage.k)

    @property
    def layers_begin(self) -> tuple[str, ...]:
        """Prefixes of the names of the layers' parameters in the class."""
        names = sorted({site.family.in_class.layer for site in self.architecture.sites})
        return tuple(self.prefix + name.partition("{")[0] for name in names)

    def around(self) -> dict[str, nn.Parameter]:
        """Parameters outside the layers, by their names in the checkpoint. Tied ones are listed under each name."""
        first = self.architecture.family_of(0).layer.format(layer=0)
        stem = self.architecture.prefix(self.checkpoint, 0).removesuffix(first)
        found = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names = (name, stem + name.removeprefix(self.prefix))
            stored = next((n for n in names if n in self.checkpoint), None)
            if stored is not None and not name.startswith(self.layers_begin):
                found[stored] = parameter
        return found

    def replace_around(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give parameters outside the layers new values. Tied parameters change with them. Buffers that some
        checkpoints hold (position ids) stay."""
        parameters = self.around()
        for name, tensor in ((n, t) for n, t in tensors.items() if n in parameters):
            parameters[name].data = tensor.to(self.device, self.dtype)
