"""A text for training, divided into what is learnt and what judges."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor

from grouper.calibration.source import TextSource
from grouper.calibration.text import text_of
from grouper.errors import GrouperError
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.options import UptrainOptions
from grouper.uptraining.text import Examples, examples_of


@dataclass(frozen=True)
class Division:
    """learnt, judged: windows, none in both. options: resolved for so much text. flattered: whether refinement has seen
    what judges, so that the start looks better than it is."""

    learnt: Examples
    judged: Examples
    options: UptrainOptions
    flattered: bool = False


def divisions(model: ExportedModel, source: TextSource, options: UptrainOptions, device: str) -> Iterator[Division]:
    """The one to take comes first; behind it what an older version would have taken, and may have begun with. Raises
    GrouperError where the text is too short."""
    with suppress(StopIteration):
        yield next(set_aside(model, source, options, device))
    yield among_all(model, source, options, device)


def set_aside(model: ExportedModel, source: TextSource, options: UptrainOptions, device: str) -> Iterator[Division]:
    """By what calibration and refinement have skipped, too; nothing where the text has no such part, or refinement has
    seen it all the same, as that of an older version."""
    aside = replace(source, part="judged")
    if not aside.documents(lambda: None).size:
        return
    learnt = examples_of(model.original, replace(source, part="learnt"), options.window)
    with suppress(GrouperError):  # too few of its rows, or tokens for one window
        judged = examples_of(model.original, aside, options.window)
        judged = judged.of(~refined_on(model, aside, judged))
        options = options.resolved(device, learnt.tokens.numel())
        count = options.held_out_windows(len(learnt) + len(judged))
        if len(judged) >= count:
            yield Division(learnt, judged.spread(count), options)


def among_all(model: ExportedModel, source: TextSource, options: UptrainOptions, device: str) -> Division:
    """By windows of the whole text that refinement has not seen, where there are enough of these."""
    whole = replace(source, part="whole")
    text = examples_of(model.original, whole, options.window)
    options = options.resolved(device, text.tokens.numel())
    seen = refined_on(model, whole, text)
    count = options.held_out_windows(len(text))
    flattered = int((~seen).sum()) < count
    return Division(*text.split(count, None if flattered else seen), options, flattered)


def refined_on(model: ExportedModel, source: TextSource, text: Examples) -> Tensor:
    """[n], bool: which windows of the text the model's refinement has seen. It cuts chats otherwise: of a file of them
    it may have seen any."""
    if model.seen is None or source.chats() is None:
        return model.refined_on(text.tokens)
    as_text = text_of(model.original, source, model.seen.window)
    return model.refined_on(as_text).any().expand(len(text))
