"""How near a regrouped encoder, with a decoder or without, is to its original: what is measured depends on its head.

A masked language model is asked for the masked tokens, a model with a decoder for the target's, a classifier for the
class of a picture; where no answers are known, only the two models' answers are compared. A model without a head gives
vectors: the mean over tokens of what stands behind its last layer, whose cosine with the original's is taken.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from grouper.attention import Merged
from grouper.calibration.examples import NOT_ASKED, Examples
from grouper.divergence import kl_divergence
from grouper.layout import HeadLayout
from grouper.model.in_memory import InMemoryModel
from grouper.threads import side_by_side

BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
Columns = dict[str, float]
PerExample = dict[str, np.ndarray]  # [n], NaN where nothing was asked


@dataclass(frozen=True)
class OriginalOfExamples:
    """The model as it came, on examples; `network` is a copy of its own, since the model's weights are exchanged."""

    network: nn.Module
    examples: Examples
    decodes: bool
    found: PerExample

    @classmethod
    def of(cls, model: InMemoryModel, examples: Examples) -> "OriginalOfExamples":
        network, decodes = copy.deepcopy(model.model), bool(model.architecture.family.parts)
        original = cls(network, examples, decodes, {})
        return cls(network, examples, decodes, measured(original, network))

    @property
    def columns(self) -> Columns:
        return columns(self.found, self.found)


def closeness_on_examples(
    model: InMemoryModel, original: OriginalOfExamples, layout: HeadLayout, merged: Merged
) -> Columns:
    """Of the model under a layout with these merged weights, by the columns of pareto.csv: `nll`, `accuracy`, `kl`,
    `agreement` or `cosine`, whichever there are, each with its standard error over examples ("nll_se" is that of the
    difference to the original)."""
    with model.installed(layout, merged) as network:
        return columns(measured(original, network), original.found)


def columns(found: PerExample, original: PerExample) -> Columns:
    """Means over examples, and their standard errors."""
    values: Columns = {}
    for name, each in found.items():
        known = ~np.isnan(each)
        if not known.any():
            values |= {name: math.nan, f"{name}_se": math.nan}
            continue
        spread = (each - original[name] if name == "nll" else each)[known]
        values[name] = float(each[known].mean())
        values[f"{name}_se"] = float(spread.std(ddof=1) / math.sqrt(len(spread))) if len(spread) > 1 else math.nan
    if "nll" in values:
        values["perplexity"] = math.exp(min(values["nll"], 700))
    return values


@torch.inference_mode()
def measured(original: OriginalOfExamples, network: nn.Module) -> PerExample:
    """What `network` gives for every example, beside what the original gives."""
    examples = original.examples
    parameter = next(network.parameters())
    size = max(1, BATCH_TOKENS[parameter.device.type] // examples.tokens)

    def of(part: slice) -> dict[str, Tensor]:
        some = examples[part]
        given = some.called_with(parameter.device, parameter.dtype, original.decodes)
        ours = network(**given)
        theirs = ours if network is original.network else original.network(**given)
        labels = None if some.labels is None else some.labels.to(parameter.device)
        return compared(ours, theirs, labels, some.read)

    parts = [slice(i, i + size) for i in range(0, len(examples), size)]
    batches = list(side_by_side(of, parts, str(parameter.device)))
    return {name: torch.cat([batch[name].double().cpu() for batch in batches]).numpy() for name in batches[0]}


def compared(ours, theirs, labels: Tensor | None, read: Tensor | None) -> dict[str, Tensor]:
    """[examples] each, of two models' outputs. read: what of the inputs is no filling."""
    if ours.get("start_logits") is not None:  # where an answer begins and ends
        got, meant = (torch.stack([o.start_logits, o.end_logits], 1).float() for o in (ours, theirs))
        same = (got.argmax(-1) == meant.argmax(-1)).float()
        return {"kl": kl_divergence(got, meant).mean(1), "agreement": same.mean(1)}
    if ours.get("logits") is None:
        vectors = (pooled(outputs[0].float(), read) for outputs in (ours, theirs))
        return {"cosine": cosine_similarity(*vectors, dim=-1)}
    got, meant = ours.logits.float(), theirs.logits.float()
    kl, same = kl_divergence(got, meant), (got.argmax(-1) == meant.argmax(-1)).float()
    if labels is None:
        mean = _mean_where(read.to(got.device) if read is not None and got.ndim == 3 else None)
        return {"kl": mean(kl), "agreement": mean(same)}
    nll = cross_entropy(got.flatten(0, -2), labels.flatten(), ignore_index=NOT_ASKED, reduction="none")
    mean = _mean_where(labels != NOT_ASKED if labels.ndim > 1 else None)
    found = {"nll": mean(nll.view(labels.shape)), "kl": mean(kl), "agreement": mean(same)}
    if labels.ndim == 1:
        found["accuracy"] = (got.argmax(-1) == labels).float()
    return found


def _mean_where(mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The mean of each example's values [examples, tokens] where asked, NaN where nothing is; values [examples] as they
    are."""

    def mean(values: Tensor) -> Tensor:
        if mask is None:
            return values.flatten(1).mean(1) if values.ndim > 1 else values
        return (values * mask).sum(1) / mask.sum(1)  # 0 / 0 is NaN

    return mean


def pooled(hidden: Tensor, read: Tensor | None) -> Tensor:
    """hidden [examples, tokens, D], read [examples, tokens] or None for all. Returns the mean over tokens."""
    if read is None:
        return hidden.mean(1)
    mask = read.to(hidden)[..., None]
    return (hidden * mask).sum(1) / mask.sum(1)
