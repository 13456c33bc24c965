"""One pass of a model, with the inputs and outputs of its modules and of each call of an attention kernel."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_WATCHING = threading.RLock()  # the table of kernels is global in transformers
KERNELS = ("sdpa", "eager")


@dataclass
class Call:
    """One call of a kernel. name: module that called. query: [batch, H, tokens, d]. key, value: [batch, G, seen, d].
    output: [batch, tokens, H, d]."""

    name: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    output: Tensor


@dataclass
class Pass:
    """First input and output of each module by name, in the order of their calls, and the kernel's calls."""

    entered: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    answer: Any = None


def watched(model: nn.Module, inputs: dict[str, Tensor], **options: Any) -> Pass:
    """Pass of these inputs through the model."""
    found, names = Pass(), {id(module): name for name, module in model.named_modules()}
    handles = []

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, given: tuple, named: dict[str, Any], output: Any) -> None:
            first = next((v for v in (*given, *named.values()) if isinstance(v, Tensor)), None)
            left = output[0] if isinstance(output, tuple) and output else output
            if name not in found.left and isinstance(left, Tensor) and first is not None:
                found.entered[name], found.left[name] = named.get("hidden_states", first), left

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(keep(name), with_kwargs=True))

    def called(module: nn.Module, of: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, named: dict) -> Any:
        output = of(module, query, key, value, mask, **named)
        if id(module) in names:
            kept = mask if isinstance(mask, Tensor) else None
            found.calls.append(Call(names[id(module)], query, key, value, kept, named, output[0]))
        return output

    try:
        with torch.inference_mode(), kernels_through(called):
            found.answer = model(**inputs, **options)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def kernels_through(called: Any) -> Iterator[None]:
    """Send each call of a kernel through `called`(module, kernel, query, key, value, mask, named)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as KNOWN

    def through(name: str) -> Any:
        def kernel(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **named: Any) -> Any:
            own = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
            return called(module, original.get(name, own), query, key, value, named.pop("attention_mask", mask), named)

        return kernel

    with _WATCHING:
        original = {name: KNOWN[name] for name in KERNELS if name in KNOWN}
        local = dict(KNOWN._local_mapping)
        try:
            for name in KERNELS:
                KNOWN[name] = through(name)
            yield
        finally:
            KNOWN._local_mapping.clear()
            KNOWN._local_mapping.update(local)
