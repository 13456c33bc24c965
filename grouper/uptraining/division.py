"""Division of a training text into a part to learn from and a held-out part."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grouper.calibration.seen import SeenExamples
from grouper.calibration.source import TextSource
from grouper.calibration.text import text_of
from grouper.errors import GrouperError
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.options import UptrainOptions, UptrainPlan
from grouper.uptraining.text import TrainingText, text_for

SETS_ASIDE = ("windows", "text")  # pairs, images and recordings are read whole


@dataclass(frozen=True)
class Division:
    """Division of a text. learnt, judged: disjoint sets of examples. plan: plan of the training for this amount of
    text. flattered: whether refinement has seen the held-out examples, so that the starting model looks better than it
    is."""

    learnt: TrainingText
    judged: TrainingText
    plan: UptrainPlan
    flattered: bool = False


def divisions(model: ExportedModel, source: TextSource, options: UptrainOptions, device: str) -> Iterator[Division]:
    """Possible divisions, the preferred one first. The others are those that older versions would have used, and may
    have begun with. Raises GrouperError if the text is too short."""
    if model.architecture.family.reads in SETS_ASIDE and not source.images:
        yield from set_aside(model, source, options, device)
    yield among_all(model, source, options, device)


def set_aside(model: ExportedModel, source: TextSource, options: UptrainOptions, device: str) -> Iterator[Division]:
    """Division by the held-out stretches that calibration and refinement also skip. Yields nothing if the text has no
    such stretches, or if refinement saw them, as in older versions."""
    aside = replace(source, part="judged")
    if not aside.documents(lambda: None).size:
        return
    learnt = text_for(model.original, replace(source, part="learnt"), options.window)
    try:
        judged = text_for(model.original, aside, options.window)
    except GrouperError:  # too few rows in them, or too few tokens for one window
        return
    judged = judged.rows(~refined_on(model, aside, judged))
    plan = planned(options, learnt, device)
    count = plan.held_out_windows(len(learnt) + len(judged))
    if len(judged) >= count:
        yield Division(learnt, judged.spread(count), plan)


def among_all(model: ExportedModel, source: TextSource, options: UptrainOptions, device: str) -> Division:
    """Division of the whole text. Examples that refinement has not seen are held out if there are enough of them."""
    whole = replace(source, part="whole")
    text = text_for(model.original, whole, options.window)
    plan = planned(options, text, device)
    seen = refined_on(model, whole, text)
    count = plan.held_out_windows(len(text))
    flattered = int((~seen).sum()) < count
    return Division(*text.split(count, None if flattered else seen), plan, flattered)


def planned(options: UptrainOptions, text: TrainingText, device: str) -> UptrainPlan:
    """Plan for this text, with its examples' length as the window."""
    return replace(options, window=text.batch.tokens).plan(device, text.tokens)


def refined_on(model: ExportedModel, source: TextSource, text: TrainingText) -> Tensor:
    """True for examples of the text that refinement has seen [n]. Refinement cuts chats into other windows, so if it
    has seen any of them, all count as seen."""
    seen = model.seen
    if seen is None:
        return torch.zeros(len(text), dtype=torch.bool)
    if isinstance(seen, SeenExamples) or text.batch.windows is None or source.chats() is None:
        return seen.touches(text.batch)
    return seen.touches(text_of(model.original, source, seen.window)).any().expand(len(text))
