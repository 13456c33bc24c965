"""How near a regrouped model is to its original on text: nats, KL, equal likeliest tokens, with standard errors.

A model is walked layer by layer over the residual stream, in memory or streamed from disk alike; what the original's
last layer gave is kept, so that its distribution is at hand for every layout that is measured.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fitness.perplexity import batches
from fitness.positions import bands, called
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
    nll_se that of the difference to the original; NaN for a single window. bands: of long windows, (nll, nll_se) by the
    positions that they are of, as "256-512"."""

    nll: float
    nll_se: float
    kl: float
    kl_se: float
    agreement: float
    agreement_se: float
    bands: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nll, 700))

    @classmethod
    def mean(cls, several: list["Closeness"]) -> "Closeness":
        """Of several texts, all weighing the same, their errors independent."""
        values = {}
        for name in ("nll", "kl", "agreement"):
            values[name] = float(np.mean([getattr(c, name) for c in several]))
            values[f"{name}_se"] = _together([getattr(c, f"{name}_se") for c in several])
        told: dict[str, tuple[float, float]] = {}
        for band in several[0].bands:  # all texts are cut into windows of one length
            means, errors = zip(*(c.bands[band] for c in several))
            told[band] = float(np.mean(means)), _together(errors)
        return cls(**values, bands=told)


def _together(errors: Sequence[float]) -> float:
    """Standard error of the mean of what has these, independent ones."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors)


@dataclass(frozen=True)
class Original:
    """The model as it came, on one text. windows: [n, tokens] ids. stream: behind its last layer [n, tokens, D]. nll:
    of each window [n]. by_band: the same of each band of positions [bands, n]."""

    model: Layers
    windows: Tensor
    stream: Tensor
    nll: np.ndarray
    by_band: np.ndarray

    @classmethod
    def of(cls, model: Layers, windows: Tensor) -> "Original":
        stream = walked(model, windows)
        nll, _kl, _agreement, *by_band = _by_window(model, windows, stream, None)
        return cls(model, windows, stream, nll, np.array(by_band))

    @property
    def closeness(self) -> Closeness:
        """To itself."""
        told = {name: (float(nll.mean()), 0.0) for name, nll in zip(self.band_names, self.by_band)}
        return Closeness(float(self.nll.mean()), 0.0, 0.0, 0.0, 1.0, 0.0, told)

    @property
    def band_names(self) -> list[str]:
        return [called(band) for band in bands(self.windows.shape[1])]


def closeness_of(model: Layers, original: Original, layout: HeadLayout, merged: Merged) -> Closeness:
    """Of the model under a layout with these merged weights. model: the original itself, or another one of its class,
    which may have other weights around its layers."""
    stream = walked(model, original.windows, layout, merged)
    nll, kl, agreement, *by_band = _by_window(model, original.windows, stream, original)
    values = (nll.mean(), _error(nll - original.nll), kl.mean(), _error(kl), agreement.mean(), _error(agreement))
    pairs = zip(original.band_names, by_band, original.by_band)
    return Closeness(
        *map(float, values), {n: (float(ours.mean()), float(_error(ours - its))) for n, ours, its in pairs}
    )


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
    """[3 + bands, n]: each window's mean nats per token, KL and agreement, from both models' last streams, and nats per
    token of each band of positions. original: None for the original itself."""
    parts_of_windows = [slice(*band) for band in bands(windows.shape[1])]
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
        of_bands = [nll.double()[:, part].mean(-1) for part in parts_of_windows]
        return torch.stack([*(x.double().mean(-1) for x in (nll, kl, same)), *of_bands]).cpu().numpy()

    with ExitStack() as stack:
        for one in {id(m): m for m in (model, *([original.model] if original else []))}.values():
            stack.enter_context(stubs(one, lambda _layer, _inputs, _named: here.stream))
        return np.concatenate(list(side_by_side(values, batches(windows, model.device), model.device)), axis=1)
