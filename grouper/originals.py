"""Locations of the local models that exports were made from.

An exported folder may be published, so it holds its original's name and fingerprint but no path. The path is stored on
this machine, in one file per fingerprint.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.outputs import write_json
from grouper.own_folder import home
from grouper.schema import document, fitted, text_of


def remember(original: Checkpoint) -> None:
    """Store the path of a local model. Failure is ignored, because the user can pass `base` instead."""
    if Path(original.name).is_dir():
        with suppress(OSError, RuntimeError):
            record = _record(original.fingerprint)
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, {"place": original.place})


def remembered(fingerprint: object) -> Path | None:
    """Last known folder of a model with this fingerprint; None if none is known. The caller must check that the folder
    still exists and is unchanged."""
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
