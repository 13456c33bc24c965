"""Closeness of a regrouped model to its original: nats, KL, agreement of the likeliest answers, with standard errors.

A model is walked layer by layer over the residual stream, in memory or streamed from disk. The output of the original's
last layer is kept, so that its answers are available for every layout that is measured.

The model's head decides which answers are measured: each next token of a decoder, the masked tokens of a masked
language model, the target tokens of an encoder-decoder, the class of an image for a classifier. If no right answers are
known, only the two models' answers are compared. A model without a head gives vectors, the mean over tokens of its last
layer's output; their cosine with the original's is measured.

Ranks share the parts of a text, and every rank gets the results of all.
"""

import math
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from grouper.attention import Merged
from grouper.cache_types import CacheType
from grouper.divergence import kl_divergence
from grouper.evaluation.perplexity import batches
from grouper.evaluation.positions import bands, column_at
from grouper.families.sites import Place
from grouper.layout import HeadLayout
from grouper.progress import Progress, no_progress
from grouper.ranks import ALONE, Ranks
from grouper.running.answers import answered, asked_of, logits_of, pooled, targets_of
from grouper.running.batch import NOT_ASKED, Batch
from grouper.running.in_memory import exchanged
from grouper.running.kept_cache import kept_as
from grouper.running.layers import Layers
from grouper.running.stub_layers import passed_on, stubs
from grouper.running.walk import Walk
from grouper.threads import side_by_side

Columns = dict[str, float]  # named like columns of pareto.csv
PerExample = dict[str, np.ndarray]  # [n] for each measure, NaN if nothing was asked


@dataclass(frozen=True)
class Original:
    """The original model on one text. stream: output of its last layer [n, tokens, D]. found: its own measures for each
    example."""

    model: Layers
    batch: Batch
    stream: Tensor
    found: PerExample

    @classmethod
    def of(
        cls, model: Layers, given: Tensor | Batch, progress: Progress = no_progress, ranks: Ranks = ALONE
    ) -> "Original":
        """Walk the original over a text. given: windows [n, tokens] of ids, or inputs of an encoder. ranks: processes
        that share the text; all must call."""
        batch = Batch.of(given)
        alone = cls(model, batch, walked(model, batch, progress=progress, ranks=ranks), {})
        return cls(model, batch, alone.stream, measured(alone, model, alone.stream, ranks))

    @property
    def columns(self) -> Columns:
        return columns(self.found, self.found)


def closeness_of(
    model: Layers,
    original: Original,
    layout: HeadLayout,
    merged: Merged,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
    kept: CacheType | None = None,
) -> Columns:
    """Measure the model under a layout with these merged weights. Returns the columns of pareto.csv that apply: `nll`,
    `accuracy`, `kl`, `agreement`, `cosine`. They are means over examples, each with its standard error (`nll_se` is
    that of the difference to the original). For long windows, nats by position are added (`nll@256-512`).

    model: the original itself, or another model of its class with other weights around its layers. ranks: processes
    that share the text; all have these weights. kept: type of the KV cache (default: keys and values are not rounded).
    """
    stream = walked(model, original.batch, (layout, merged), progress, ranks, kept)
    return columns(measured(original, model, stream, ranks), original.found)


def closeness_of_kept(
    original: Original, kept: CacheType, progress: Progress = no_progress, ranks: Ranks = ALONE
) -> Columns:
    """Measures of the original itself with its KV cache in this type."""
    stream = walked(original.model, original.batch, None, progress, ranks, kept)
    return columns(measured(original, original.model, stream, ranks), original.found)


def columns(found: PerExample, original: PerExample) -> Columns:
    """Means over examples with their standard errors. The differences of the original from itself are 0."""
    values: Columns = {}
    for name, each in found.items():
        kind, at, band = name.partition("@")
        error = f"{kind}_se{at}{band}"
        known = ~np.isnan(each)
        if not known.any():
            values |= {name: math.nan, error: math.nan}
            continue
        values[name] = float(each[known].mean())
        if name == "nll":
            values["perplexity"] = math.exp(min(values["nll"], 700))
        spread = (each - original[name] if kind == "nll" else each)[known]
        alone = 0.0 if found is original and kind != "accuracy" else math.nan
        values[error] = float(spread.std(ddof=1) / math.sqrt(len(spread))) if len(spread) > 1 else alone
    return values


def mean_of(several: Mapping[str, Columns]) -> Columns:
    """Mean over several texts of equal weight. Their errors are assumed to be independent."""
    values: Columns = {}
    for name in next(iter(several.values())):
        each = [found[name] for found in several.values()]
        if name.partition("@")[0].endswith("_se"):
            values[name] = math.sqrt(sum(error**2 for error in each)) / len(each)
        else:
            values[name] = float(np.mean(each))
    if "nll" in values:
        values["perplexity"] = math.exp(min(values["nll"], 700))
    return values


@torch.no_grad()
def walked(
    model: Layers,
    batch: Tensor | Batch,
    regrouped: tuple[HeadLayout, Merged] | None = None,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
    kept: CacheType | None = None,
) -> Tensor:
    """Stream after the last layer [n, tokens, D], of the original model or under a layout with its merged weights,
    which are requested one attention at a time. Each rank walks its parts and gets those of the others. kept: type of
    the KV cache."""
    batch = Batch.of(batch)
    walk = Walk(model, batch, batches(batch, model.device)[0].stop)
    mine = ranks.share(range(len(walk.parts)))
    for step in walk:
        with step.loaded() as module, ExitStack() as stack:
            if regrouped is not None:
                layout, merged = regrouped
                for site in step.sites:
                    one = exchanged(model, site.index, module, merged(site.index), layout.layers[site.index])
                    stack.enter_context(one)
            for site in step.sites:
                stack.enter_context(kept_as(module.get_submodule(site.family.in_class.attention), kept))
            step.advance(module, model.dtype, mine)
        progress(step.sites[-1].index + 1, model.architecture.layers, f"measuring, {step.sites[0].name}")
    for number, part in enumerate(walk.parts):
        ranks.send(walk.stream[part], number % ranks.size)
    return walk.stream


@torch.inference_mode()
def measured(original: Original, model: Layers, stream: Tensor, ranks: Ranks = ALONE) -> PerExample:
    """Measures of every example. stream: output of the last layer of `model` for the original's batch."""
    here, batch = threading.local(), original.batch  # here: last layer's output for a thread's part
    last = model.architecture.places[-1][0].stack

    def answers(of: Layers, part: slice, behind: Tensor) -> Any:
        here.stream = behind[part].to(of.device, of.dtype)
        return answered(of.model, batch[part], of.architecture, of.device, of.dtype)

    def instead(place: Place, inputs: tuple, named: dict) -> Tensor:
        return here.stream if place[0].stack == last else passed_on(place, inputs, named)

    def compared_there(part: slice) -> PerExample:
        ours = answers(model, part, stream)
        theirs = ours if stream is original.stream else answers(original.model, part, original.stream)
        return {name: value.double().cpu().numpy() for name, value in compared(ours, theirs, batch[part]).items()}

    with ExitStack() as stack:
        for one in {id(m): m for m in (model, original.model)}.values():
            stack.enter_context(stubs(one, instead))
        every = batches(batch, model.device)
        mine = list(side_by_side(compared_there, ranks.share(every), model.device))
    of_ranks = ranks.gather(mine)
    parts = [of_ranks[number % ranks.size][number // ranks.size] for number in range(len(every))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compared(ours: Any, theirs: Any, batch: Batch) -> dict[str, Tensor]:
    """Measures that compare two outputs, [examples] each."""
    got, meant, right = logits_of(ours, batch), logits_of(theirs, batch), targets_of(batch)
    if got is None or meant is None:
        ours, theirs = (pooled(outputs[0].float(), batch.read) for outputs in (ours, theirs))
        return {"cosine": cosine_similarity(ours, theirs, dim=-1)}
    got, meant, asked = got.float(), meant.float(), asked_of(batch, got)
    found, likeliest = {}, got.argmax(-1)
    if right is not None:
        right = right.to(got.device)
        nll = cross_entropy(got.flatten(0, 1), right.flatten(), ignore_index=NOT_ASKED, reduction="none")
        found["nll"] = nll.view(right.shape)
    found["kl"] = torch.zeros(got.shape[:2], device=got.device) if ours is theirs else kl_divergence(got, meant)
    found["agreement"] = (likeliest == meant.argmax(-1)).float()
    if right is not None and batch.labels is not None and batch.labels.ndim == 1:
        found["accuracy"] = (likeliest == right).float()
    means = {name: mean_where(value, asked) for name, value in found.items()}
    if batch.windows is not None:
        for band in bands(batch.tokens):
            means[column_at("nll", band)] = found["nll"].double()[:, slice(*band)].mean(-1)
    return means


def mean_where(values: Tensor, asked: Tensor | None) -> Tensor:
    """Mean of each example's values [examples, places] where asked; NaN for an example with nothing asked."""
    values = values.double()
    return values.mean(1) if asked is None else (values * asked).sum(1) / asked.sum(1)  # 0 / 0 is NaN
