"""Held-out text, on which one-call regrouping measures the model before and after."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from grouper.calibration.encoding import opened
from grouper.calibration.kept_tokens import KeptTokens
from grouper.calibration.source import TextSource, is_file_name
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.running.batch import Batch
from grouper.uptraining.division import SETS_ASIDE
from search.evaluation.layouts import texts_of
from search.options import HeldOutOptions, SearchOptions

GIVE = "give --evaluation FILE"


@dataclass(frozen=True)
class HeldOut:
    """Request to measure on held-out text. window: length of a window in tokens. limit: largest number of windows."""

    source: TextSource
    window: int
    limit: int

    @property
    def told(self) -> str:
        """Message that says which text is measured on."""
        text, name = self.source.text, self.source.name
        if self.source.part == "judged":
            name = f"stretches of {name} that nothing is learnt from"
        elif text and not is_file_name(text):
            name = f"the evaluation text of {name}"
        return f"measured before and after on {name}, {self.limit} windows at most"

    def read(self, checkpoint: Checkpoint, kept: KeptTokens | None = None) -> "ReadText":
        """The text as model inputs. Raises GrouperError if there is too little of it."""
        return ReadText(self, texts_of(checkpoint, self.source, None, self.window, self.limit, kept))


@dataclass(frozen=True)
class ReadText:
    """Held-out text as model inputs, by name; a single text needs no name."""

    held_out: HeldOut
    texts: Mapping[str, Batch]


def text_held_out(asked: HeldOutOptions, search: SearchOptions, reads: str, set_aside: bool = True) -> HeldOut | str:
    """The text to measure on, or the reason why there is none. reads: kind of input of the model's family. set_aside:
    whether the run leaves out the stretches of its text that training is judged on. Raises GrouperError for a text that
    cannot be read."""
    calibration = search.calibration()
    if asked.evaluation is not None:
        source = _given(asked.evaluation, search)
    elif calibration is None:
        return f"nothing is measured: there is no text; {GIVE}"
    elif reads not in SETS_ASIDE:
        return f"nothing is measured: of {reads} none are set aside; {GIVE}"
    elif search.text and not is_file_name(search.text):
        source = TextSource(search.text, purpose="evaluation")  # another text than the one calibrated on
    else:
        source = replace(calibration.source, part="judged")
        if not set_aside or not source.documents(lambda: None).size:
            return f"nothing is measured: {source.name} is below 2 MiB, so that none of it is set aside; {GIVE}"
    return HeldOut(source, search.window, asked.limit)


def _given(evaluation: str, search: SearchOptions) -> TextSource:
    """The text named for measuring, checked before any work is done."""
    if search.images:
        return TextSource(images=evaluation, purpose="evaluation")
    source, learnt = TextSource(evaluation, purpose="evaluation"), search.text
    if source.path:
        opened(source.path).close()
        if learnt and is_file_name(learnt) and Path(learnt).exists() and source.path.samefile(learnt):
            raise GrouperError(f"{evaluation} is the text to learn from: give another one to measure on")
    return source
