"""Attention layer in training: the heads of a group read one K and one V head, which are single parameters."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grouper.attention import PARTS, Attention, Projection
from grouper.families.architecture import Architecture
from grouper.layout import LayerLayout
from grouper.running.in_memory import expanded_attention, expanded_tensors


class SharedAttention(nn.Module):
    """Replacement of an attention module of the original's class, with the same computation. Its parameters are the
    shared heads. Each pass copies them for every query head, so that their gradients are summed in the shared heads.
    The copies are put into the module during the pass, so only one thread at a time may run it.

    attention: initial weights, in the layout's order. Methods that train something other than the shared heads override
    `weights`. The linear modules q, k, v [heads d, D] and o [D, H d] hold parameters and are never called; they are
    there for code that searches for linear modules, such as adapters.
    """

    def __init__(
        self, module: nn.Module, architecture: Architecture, attention: Attention, layout: LayerLayout, layer: int
    ):
        super().__init__()
        self.architecture, self.layout, self.layer, self.step = architecture, layout, layer, 0
        self.family = architecture.family_of(layer).in_class
        self.q, self.k, self.v = (holder_of(attention.projection(part)) for part in PARTS)
        self.o = holder(attention.o.flatten(1), attention.o_bias)
        self.fixed = attention.planes, attention.qk_norm
        if attention.qk_norm == "all":  # a gain per head; a gain shared by all heads is the module's own
            for gain in ("q_norm", "k_norm"):
                self.register_parameter(gain, nn.Parameter(getattr(attention, gain).float().clone()))
        if attention.sinks is not None:
            self.register_parameter("sinks", nn.Parameter(attention.sinks.float().clone()))
        inner = expanded_attention(architecture, module, layout, "meta", torch.float32, layer)
        self.inside = f"{self.family.attention}."
        for name in expanded_tensors(architecture, attention, layout, layer):  # supplied anew in every pass
            owner, _, last = name.removeprefix(self.inside).rpartition(".")
            place = inner.get_submodule(owner)
            del place._parameters[last]
            place.register_buffer(last, torch.empty(0), persistent=False)
        self.inner = inner

    def heads(self, part: str) -> Tensor:
        """Current weights of q, k or v [heads, d, D], or of o [D, H, d]."""
        weight, d = weight_of(getattr(self, part)), self.architecture.head_dim
        return weight.unflatten(1, (-1, d)) if part == "o" else weight.unflatten(0, (-1, d))

    def bias(self, part: str) -> Tensor | None:
        """Bias of q, k or v [heads, d], or of o [D]."""
        bias = getattr(self, part).bias
        return bias if bias is None or part == "o" else bias.view(-1, self.architecture.head_dim)

    def weights(self) -> Attention:
        """Current weights, in the layout's order; gradients flow through."""
        q, k, v, o = (self.heads(part) for part in ("q", "k", "v", "o"))
        q_bias, k_bias, v_bias, o_bias = (self.bias(part) for part in ("q", "k", "v", "o"))
        q_norm, k_norm, sinks = (self._parameters.get(name) for name in ("q_norm", "k_norm", "sinks"))
        return Attention(q, k, v, o, q_bias, k_bias, v_bias, o_bias, q_norm, k_norm, sinks, *self.fixed)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        tensors = expanded_tensors(self.architecture, self.weights(), self.layout, self.layer)
        state = {name.removeprefix(self.inside): tensor for name, tensor in tensors.items()}
        return functional_call(self.inner, state, inputs, named)

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that the shared heads are computed from, without those of the original module."""
        return ((n, p) for n, p in self.named_parameters() if not n.startswith("inner."))

    def own_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers that a method keeps from step to step."""
        return self.named_buffers(recurse=False)

    @torch.no_grad()
    def finished(self) -> Attention:
        """Weights to write, on the CPU."""
        return self.weights().to("cpu")

    def after_step(self, step: int) -> None:
        """Hook after step number `step`, for methods that change more than weights."""
        self.step = step

    def __getattr__(self, name: str) -> Any:
        """Forward other attribute access to the wrapped module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":  # during construction
                raise
            return getattr(super().__getattr__("inner"), name)


def holder_of(projection: Projection) -> nn.Linear:
    """Linear module with the rows of a projection."""
    return holder(projection.weight.flatten(0, 1), projection.bias)


def holder(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Linear module with these parameters, in float32."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.float().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.float().flatten().clone())
    return made


def weight_of(module: Any) -> Tensor:
    """Weight of a linear module, including the contribution of peft's adapters if it has any."""
    weight: Tensor = module.weight
    for adapter in getattr(module, "active_adapters", ()):
        weight = weight + module.get_delta_weight(adapter)
    return weight


def key_projection(attention: SharedAttention) -> nn.Module:
    """Module whose input is the input of k."""
    return attention.inner.get_submodule(attention.family.storage.k.removeprefix(attention.inside))
