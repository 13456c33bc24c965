"""A transformers model whose attention weights can be exchanged layer by layer: for measuring layouts without writing them.

Weights go in expanded, one K and one V head per query head, so any layout runs in any class, and the KV cache plays no part. Never save
such a model: write layouts with `export`.
"""

import math
from pathlib import Path

import psutil
import torch
from torch import nn

from grouper.architectures import Architecture
from grouper.attention import MergedLayer
from grouper.checkpoint import Checkpoint
from grouper.layout import LayerLayout


class InMemoryModel:
    """`model` is the transformers model; `install` changes one layer's attention."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32, offload: Path | None = None):
        """offload: a folder for what fits neither the GPU nor main memory: accelerate then places the model, in its stored dtype, and fetches
        layers as they are needed. Such a model is for looking, not for `install`.
        """
        from transformers import AutoModelForCausalLM

        self.checkpoint = checkpoint.local()
        self.architecture = Architecture.of(checkpoint.config)
        self.device, self.dtype = device, dtype
        if offload is None:
            self.model = AutoModelForCausalLM.from_pretrained(self.checkpoint.folder, dtype=dtype, use_safetensors=True).to(device)
        else:
            place = {"device_map": "auto", "max_memory": memory_limits(device), "offload_folder": offload}
            self.model = AutoModelForCausalLM.from_pretrained(self.checkpoint.folder, dtype="auto", use_safetensors=True, **place)
        self.model.eval().requires_grad_(False)
        self._original = [self._modules(layer) for layer in range(self.architecture.layers)]
        self._replaced: dict[tuple[int, str], torch.Tensor] = {}

    @staticmethod
    def fits(checkpoint: Checkpoint, device: str, dtype: torch.dtype = torch.float32) -> bool:
        """Whether the whole model has room on the device, with a fifth to spare."""
        needed = dtype.itemsize * sum(math.prod(t.shape) for t in checkpoint.tensors.values())
        return 1.2 * needed < min(free_memory(), torch.cuda.mem_get_info(device)[0] if "cuda" in device else math.inf)

    def layer(self, layer: int) -> nn.Module:
        return self.model.get_submodule(self.architecture.family.layer.format(layer=layer).rstrip("."))

    def attention(self, layer: int) -> nn.Module:
        """The module that holds the layer's projections."""
        return self.layer(layer).get_submodule(self.architecture.family.q.rpartition(".")[0])

    def query_projection(self, layer: int) -> nn.Module:
        """The module whose input is what enters q, k and v."""
        return self.layer(layer).get_submodule(self.architecture.family.q)

    def key_projection(self, layer: int) -> nn.Module:
        """The module that gives k, among others where projections are fused."""
        return self.layer(layer).get_submodule(self.architecture.family.q if self.architecture.family.fused else self.architecture.family.k)

    def _modules(self, layer: int) -> dict:
        attention = self.attention(layer)
        names = [m.rpartition(".")[2] for m in self.architecture.projections()]
        return {**{n: getattr(attention, n) for n in names}, "num_key_value_groups": attention.num_key_value_groups}

    def restore(self) -> None:
        """The original weights, in all layers."""
        for layer, modules in enumerate(self._original):
            for name, module in modules.items():
                setattr(self.attention(layer), name, module)
        for (layer, name), tensor in self._replaced.items():
            self.layer(layer).get_parameter(name).data = tensor
        self._replaced.clear()

    def install(self, layer: int, merged: MergedLayer, heads: LayerLayout) -> None:
        """Let the layer compute with these weights."""
        expanded = merged.attention.expanded(heads)
        module, place = self.attention(layer), {"device": self.device, "dtype": self.dtype}
        for name, tensor in self.architecture.tensors("", expanded):
            path, kind = name.rsplit(".", 1)
            child = path.rpartition(".")[2]
            if kind == "weight":
                linear = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, device="meta")
                linear.weight = nn.Parameter(tensor.to(**place), requires_grad=False)
                setattr(module, child, linear)
            else:
                getattr(module, child).bias = nn.Parameter(tensor.to(**place), requires_grad=False)
        module.num_key_value_groups = 1
        for name, tensor in merged.others.items():
            parameter = self.layer(layer).get_parameter(name)
            self._replaced.setdefault((layer, name), parameter.data)
            parameter.data = tensor.to(**place)


def memory_limits(device: str) -> dict[int | str, int]:
    """For accelerate: what the model may take of the GPU and of main memory, a quarter left for activations and sums."""
    limits: dict[int | str, int] = {"cpu": int(free_memory() * 0.75)}
    return limits if "cuda" not in device else {torch.device(device).index or 0: int(torch.cuda.mem_get_info(device)[0] * 0.75), **limits}


def free_memory() -> float:
    """Bytes of main memory that are free or hold what can be read again."""
    return float(psutil.virtual_memory().available)
