"""Samples of text in samples.json of a run: continuations by the original and under layouts, to compare by reading."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError
from grouper.outputs import write_json
from grouper.schema import document, fitted, text_of

FILE = "samples.json"


@dataclass(frozen=True)
class _Sample:
    layout: int
    merge: str
    prompt: str
    text: str


@dataclass(frozen=True)
class _Samples:
    samples: list[Any]


def note_sample(folder: Path, layout: int, merge: str, prompt: str, text: str) -> None:
    """Add a sample to a run, replacing an earlier one of the same layout and merge."""
    sample = {"layout": layout, "merge": merge, "prompt": prompt, "text": text}
    known = [one for one in read_samples(folder) if (one["layout"], one["merge"]) != (layout, merge)]
    write_json(folder / FILE, {"samples": [*known, sample]})


def read_samples(folder: Path) -> list[dict]:
    """Samples of a run: layout, merge, prompt, text. Missing or damaged ones are left out, because nothing depends on
    them."""
    found: list[dict] = []
    with suppress(OSError, GrouperError):
        for one in fitted(document(text_of(folder / FILE)), _Samples).samples:
            with suppress(GrouperError):
                found.append(asdict(fitted(one, _Sample)))
    return found
