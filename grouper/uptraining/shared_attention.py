"""One attention layer in training: the heads of a group read one K and one V head, which are parameters once."""

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
    """Stands where an attention module of the original's class stood, and computes as that does. Its parameters are the
    shared heads; each query head's copies of them are made in every pass, so that gradients come together in the shared
    ones. While a pass is made they stand in the module's own places, so one thread at a time may make one.

    attention: weights to begin with, in the layout's order. Methods that learn something else than the shared heads
    themselves override `weights`. The linear modules q, k, v [heads d, D] and o [D, H d] hold parameters and are never
    called: what knows linear modules (adapters, say) finds them.
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
        if attention.qk_norm == "all":  # a gain of each head; one of all heads is the module's own
            for gain in ("q_norm", "k_norm"):
                self.register_parameter(gain, nn.Parameter(getattr(attention, gain).float().clone()))
        if attention.sinks is not None:
            self.register_parameter("sinks", nn.Parameter(attention.sinks.float().clone()))
        inner = expanded_attention(architecture, module, layout, "meta", torch.float32, layer)
        self.inside = f"{self.family.attention}."
        for name in expanded_tensors(architecture, attention, layout, layer):  # given anew in every pass
            owner, _, last = name.removeprefix(self.inside).rpartition(".")
            place = inner.get_submodule(owner)
            del place._parameters[last]
            place.register_buffer(last, torch.empty(0), persistent=False)
        self.inner = inner

    def heads(self, part: str) -> Tensor:
        """[heads, d, D] of q, k or v as they are now; of o [D, H, d]."""
        weight, d = weight_of(getattr(self, part)), self.architecture.head_dim
        return weight.unflatten(1, (-1, d)) if part == "o" else weight.unflatten(0, (-1, d))

    def bias(self, part: str) -> Tensor | None:
        """[heads, d]; of o [D]."""
        bias = getattr(self, part).bias
        return bias if bias is None or part == "o" else bias.view(-1, self.architecture.head_dim)

    def weights(self) -> Attention:
        """As they are now, in the layout's order; gradients flow."""
        q, k, v, o = (self.heads(part) for part in ("q", "k", "v", "o"))
        q_bias, k_bias, v_bias, o_bias = (self.bias(part) for part in ("q", "k", "v", "o"))
        q_norm, k_norm, sinks = (self._parameters.get(name) for name in ("q_norm", "k_norm", "sinks"))
        return Attention(q, k, v, o, q_bias, k_bias, v_bias, o_bias, q_norm, k_norm, sinks, *self.fixed)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        tensors = expanded_tensors(self.architecture, self.weights(), self.layout, self.layer)
        state = {name.removeprefix(self.inside): tensor for name, tensor in tensors.items()}
        return functional_call(self.inner, state, inputs, named)

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that are not the module's: what the shared heads are made of."""
        return ((n, p) for n, p in self.named_parameters() if not n.startswith("inner."))

    def own_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """What a method remembers from step to step."""
        return self.named_buffers(recurse=False)

    @torch.no_grad()
    def finished(self) -> Attention:
        """The weights to write, on the CPU."""
        return self.weights().to("cpu")

    def after_step(self, step: int) -> None:
        """Called when `step` steps were taken; methods that change more than weights do it here."""
        self.step = step

    def __getattr__(self, name: str) -> Any:
        """What a layer asks of its attention beside calling it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":  # not there yet
                raise
            return getattr(super().__getattr__("inner"), name)


def holder_of(projection: Projection) -> nn.Linear:
    """A linear module with the rows of a projection."""
    return holder(projection.weight.flatten(0, 1), projection.bias)


def holder(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear module with these parameters, in float32."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.float().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.float().flatten().clone())
    return made


def weight_of(module: Any) -> Tensor:
    """The weight of a linear module; with what its adapters add, where peft has given it some."""
    weight: Tensor = module.weight
    for adapter in getattr(module, "active_adapters", ()):
        weight = weight + module.get_delta_weight(adapter)
    return weight


def key_projection(attention: SharedAttention) -> nn.Module:
    """The module whose input is what enters k."""
    return attention.inner.get_submodule(attention.family.storage.k.removeprefix(attention.inside))
