"""How near a regrouped model is to its original on text: nats, KL, equal likeliest tokens, with standard errors.

A model is walked layer by layer over the residual stream, in memory or streamed from disk alike; what the original's
last layer gave is kept, so that its distribution is at hand for every layout that is measured.
"""

import math
import threading
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fitness.perplexity import batches
from grouper.attention import Merged
from grouper.calibration.streams import first_inputs, run_layer, stubs
from grouper.divergence import kl_divergence
from grouper.layout import HeadLayout
from grouper.model.in_memory import exchanged
from grouper.model.layers import Layers
from grouper.threads import side_by_side


@dataclass(frozen=True)
class Closeness:
    """Means over windows. nll: nats per token. kl: from the original's distribution of the next token, in nats.
    agreement: share of tokens where both think the same one likeliest. Each *_se is a standard error over windows,
    nll_se that of the difference to the original; NaN for a single window."""

    nll: float
    nll_se: float
    kl: float
    kl_se: float
    agreement: float
    agreement_se: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nll, 700))

    @classmethod
    def mean(cls, several: list["Closeness"]) -> "Closeness":
        """Of several texts, all weighing the same, their errors independent."""
        values = {}
        for name in ("nll", "kl", "agreement"):
            values[name] = float(np.mean([getattr(c, name) for c in several]))
            values[f"{name}_se"] = math.sqrt(sum(getattr(c, f"{name}_se") ** 2 for c in several)) / len(several)
        return cls(**values)


@dataclass(frozen=True)
class Original:
    """The model as it came, on one text. windows: [n, tokens] ids. stream: behind its last layer [n, tokens, D]. nll:
    of each window [n]."""

    model: Layers
    windows: Tensor
    stream: Tensor
    nll: np.ndarray

    @classmethod
    def of(cls, model: Layers, windows: Tensor) -> "Original":
        stream = walked(model, windows)
        return cls(model, windows, stream, _by_window(model, windows, stream, None)[0])

    @property
    def closeness(self) -> Closeness:
        """To itself."""
        return Closeness(float(self.nll.mean()), 0.0, 0.0, 0.0, 1.0, 0.0)


def closeness_of(model: Layers, original: Original, layout: HeadLayout, merged: Merged) -> Closeness:
    """Of the model under a layout with these merged weights. model: the original itself, or another one of its class,
    which may have other weights around its layers."""
    stream = walked(model, original.windows, layout, merged)
    nll, kl, agreement = _by_window(model, original.windows, stream, original)
    values = (nll.mean(), _error(nll - original.nll), kl.mean(), _error(kl), agreement.mean(), _error(agreement))
    return Closeness(*map(float, values))


def _error(values: np.ndarray) -> float:
    """Standard error of the mean."""
    return values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@torch.no_grad()
def walked(model: Layers, windows: Tensor, layout: HeadLayout | None = None, merged: Merged | None = None) -> Tensor:
    """The stream behind the last layer [n, tokens, D], of the model as it came or under a layout. One layer after the
    other is asked for."""
    stream, arguments = first_inputs(model, windows, model.device)
    for layer, given in enumerate(arguments):
        with model.loaded(layer) as block:
            if layout is None:
                _advance(model, block, stream, given)
            else:
                with exchanged(model, layer, block, merged(layer), layout.layers[layer]):
                    _advance(model, block, stream, given)
    return stream


def _advance(model: Layers, block: nn.Module, stream: Tensor, arguments: tuple) -> None:
    def advance(part: slice) -> None:
        stream[part] = run_layer(block, stream[part].to(model.device, model.dtype), arguments).to(stream)

    deque(side_by_side(advance, batches(stream, model.device), model.device), maxlen=0)


@torch.inference_mode()
def _by_window(model: Layers, windows: Tensor, stream: Tensor, original: Original | None) -> np.ndarray:
    """[3, n]: each window's mean nats per token, KL and agreement, from both models' last streams. original: None for
    the original itself."""
    here = threading.local()  # the stream behind the last layer, of the batch that this thread is at

    def logits(of: Layers, part: slice, last: Tensor) -> Tensor:
        here.stream = last[part].to(of.device, of.dtype)
        tokens = windows[part].to(of.device)
        return of.model(input_ids=tokens, use_cache=False).logits[:, :-1].float()

    def values(part: slice) -> np.ndarray:
        got, wanted = logits(model, part, stream), windows[part, 1:].to(model.device)
        nll = cross_entropy(got.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
        kl, same = torch.zeros_like(nll), torch.ones_like(nll)
        if original is not None:
            meant = logits(original.model, part, original.stream)
            kl, same = kl_divergence(got, meant), (got.argmax(-1) == meant.argmax(-1)).float()
        return torch.stack([nll, kl, same]).double().mean(-1).cpu().numpy()

    with ExitStack() as stack:
        for one in {id(m): m for m in (model, *([original.model] if original else []))}.values():
            stack.enter_context(stubs(one, lambda _layer, _inputs, _named: here.stream))
        return np.concatenate(list(side_by_side(values, batches(windows, model.device), model.device)), axis=1)
