"""Places of the local models that exports were made from.

An exported folder may be published, so it holds its original's name and fingerprint and no path. The path is kept on
this machine, in a file for each fingerprint.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.outputs import write_json
from grouper.schema import document, fitted, text_of


def home() -> Path:
    """GROUPER_HOME, else XDG_CACHE_HOME/grouper, else ~/.cache/grouper. Raises RuntimeError where there is no home."""
    given = os.environ.get("GROUPER_HOME")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "grouper").expanduser().absolute()


def remember(original: Checkpoint) -> None:
    """Keep the place of a model that is a local folder. A place that cannot be kept is no error: `base` names it."""
    if Path(original.name).is_dir():
        with suppress(OSError, RuntimeError):
            record = _record(original.fingerprint)
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, {"place": original.place})


def remembered(fingerprint: object) -> Path | None:
    """The folder where a model of this fingerprint was; None if none is known. Whether it is there still, and still the
    same, is for the caller to check."""
    if not isinstance(fingerprint, str) or not re.fullmatch("[0-9a-f]{8,128}", fingerprint):  # comes from a download
        return None
    with suppress(OSError, RuntimeError, GrouperError):
        return Path(fitted(document(text_of(_record(fingerprint))), _Original).place)
    return None


@dataclass(frozen=True)
class _Original:
    place: str


def _record(fingerprint: str) -> Path:
    return home() / "originals" / f"{fingerprint}.json"
