"""Addition of each layer to its residual stream, by attention and by the rest: the quantity that the self-test
compares.

Differences are relative to the addition, token by token. Relative to the stream they would mean little: real models
carry a few values of thousands there, next to which a fifth of attention vanishes in rounding.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grouper.checkpoint.checkpoint import decoder_prefix
from grouper.export.format import TOLERANCE
from grouper.export.hf.ragged import PROJECTIONS
from grouper.families.architecture import Architecture

SMALL = 1e-3  # share of the largest token's addition; smaller additions are measured against it
ROUNDINGS = 4  # allowed error of the stream itself, in units in the last place


class LayerAdds:
    """Recorder, while `recording`, of the additions of a transformers model's layers. attention: [windows, tokens, D]
    by number of the attention. rest: [windows, tokens, D], output of the layer minus its input and its attentions, by
    number of the layer's first attention. stream: largest norm of a token in the input of each layer."""

    def __init__(self, model: nn.Module, architecture: Architecture):
        self.model, self.architecture = model, architecture
        first = architecture.family_of(0).in_class.layer.format(layer=0)
        self.prefix = decoder_prefix((n for n, _ in model.named_parameters()), first)
        self.attention: dict[int, Tensor] = {}
        self.rest: dict[int, Tensor] = {}
        self.stream: dict[int, float] = {}

    def layer(self, layer: int) -> nn.Module:
        """Module of the layer that contains this attention."""
        site = self.architecture.sites[layer]
        return self.model.get_submodule(self.prefix + site.family.in_class.layer.format(layer=site.layer).rstrip("."))

    @contextmanager
    def recording(self, layers: Iterable[int]) -> Iterator["LayerAdds"]:
        """Record these attentions until the block ends. layers: their numbers, those of one layer together."""
        within: dict[nn.Module, list[int]] = {}
        for layer in layers:
            within.setdefault(self.layer(layer), []).append(layer)
        hooks = []
        for block, attentions in within.items():
            for layer in attentions:
                hooks.append(self._output_of(block, layer).register_forward_hook(self._keep_attention(layer)))
            hooks.append(block.register_forward_hook(self._keep_rest(attentions), with_kwargs=True))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _output_of(self, block: nn.Module, layer: int) -> nn.Module:
        """Module whose output the attention adds to the stream."""
        family = self.architecture.family_of(layer).in_class
        if family.adds:
            return block.get_submodule(family.adds)
        attention, last = block.get_submodule(family.attention), family.storage.o.removeprefix(f"{family.attention}.")
        own = hasattr(attention, PROJECTIONS[3])  # an attention of our own modelling file
        return attention.get_submodule(PROJECTIONS[3] if own else last)

    def _keep_attention(self, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.attention[layer] = self.architecture.multiplier * output

        return hook

    def _keep_rest(self, attentions: list[int]) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
            entered = inputs[0] if inputs else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            added = sum(self.attention[layer].view_as(entered) for layer in attentions)
            self.rest[attentions[0]] = left - entered - added
            self.stream[attentions[0]] = float(torch.linalg.vector_norm(entered, dim=-1).max())

        return hook


def worst_difference(ours: LayerAdds, theirs: LayerAdds) -> tuple[float, str]:
    """Largest difference between two recordings, relative to the addition in `theirs`, and its location. The first
    difference above the tolerance is returned instead, because it spreads through later layers. Infinite if a number is
    not finite."""
    found = [(0.0, "")]
    for layer in sorted(theirs.attention):
        name = theirs.architecture.name_of(layer)
        found.append((difference(ours.attention[layer], theirs.attention[layer]), f"attention of {name}"))
        if layer in theirs.rest:
            wanted = theirs.rest[layer]
            rounding = ROUNDINGS * torch.finfo(wanted.dtype).eps * theirs.stream[layer]
            found.append((difference(ours.rest[layer], wanted, rounding), f"the MLP and norms of {name}"))
    above = (one for one in found if one[0] >= TOLERANCE)
    return next(above, max(found, key=lambda one: one[0]))


def difference(got: Tensor, wanted: Tensor, rounding: float = 0.0) -> float:
    """Largest norm of a token's difference, relative to the norm of its addition. rounding: rounding error of the
    numbers that both were computed from, which is not counted."""
    wrong, size = (torch.linalg.vector_norm(x, dim=-1) for x in (got - wanted.view_as(got), wanted.view_as(got)))
    floor = max(SMALL * float(size.max()), 1e-30)
    found = float(((wrong - rounding).clamp_min(0) / size.clamp_min(floor)).max())
    return found if math.isfinite(found) else math.inf
