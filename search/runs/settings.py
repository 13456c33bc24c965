"""Settings of a run in run.json: its options, and the circumstances it was made in."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grouper.calibration.calibration import Calibration
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.schema import document, fitted
from search.options import SearchOptions

FREE = ("timings", "versions", "jobs", "device", "command", "model")  # facts that may differ when a run resumes
PLACES = ("text", "images")  # paths that may be corrected if a file moved; its digest identifies the content
PACKAGES = ("kv-grouper", "torch", "numpy", "deap", "moocore")


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run. options: resolved. model: reference that opens the model from any folder. set_aside: whether
    stretches of the text were set aside, which older versions did not do. text_digest: of the calibration tokens, None
    without text. timings: in seconds."""

    options: SearchOptions
    model: str
    revision: str | None
    fingerprint: str
    set_aside: bool = False
    text_digest: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    jobs: int = 1
    device: str = "cpu"
    command: str | None = None
    timings: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, options: SearchOptions, **more: Any) -> "RunSettings":
        versions = {package: installed_version(package) for package in PACKAGES}
        return cls(options, checkpoint.place, fingerprint=checkpoint.fingerprint, versions=versions, **more)

    def to_json(self) -> str:
        """Options and facts in one JSON object."""
        facts = asdict(self)
        return json.dumps({**facts.pop("options"), **facts}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunSettings":
        """Settings from JSON; fields that an older Grouper did not write get their defaults. Raises GrouperError for
        any other text."""
        data = document(text)
        options = fitted(data, SearchOptions)
        options.check()
        return replace(fitted({**data, "options": {}}, cls), options=options)

    def changed(self, other: "RunSettings") -> list[str]:
        """Names of settings that differ and must not."""
        mine, theirs = (json.loads(settings.to_json()) for settings in (self, other))
        return sorted(k for k in mine if k not in FREE and mine[k] != theirs[k])

    @property
    def model_folder(self) -> Path | None:
        """The model's folder, if it is on this disk."""
        return Path(self.model) if Path(self.model).is_dir() else None

    def open_checkpoint(self, local: bool = True) -> Checkpoint:
        """The model that was searched. local: with all its files on this disk. Raises GrouperError if its files have
        changed."""
        checkpoint = Checkpoint.open(self.model, self.revision)
        checkpoint = checkpoint.local() if local else checkpoint
        if checkpoint.fingerprint != self.fingerprint:
            raise GrouperError(f"{self.model} is not the model that was searched (its files changed): search again")
        return checkpoint

    def with_answers_in(self, folder: Path) -> "RunSettings":
        """The settings with the place of the model's own answers corrected, if the run was moved. folder: the run's
        folder of answers."""
        text = Path(self.options.text or "")
        here = (folder / text.name).absolute()
        if text.parent.name != folder.name or text.is_file() or not here.is_file():
            return self
        return replace(self, options=replace(self.options, text=str(here)))

    def calibration(self, keep: str | os.PathLike | None = None) -> Calibration | None:
        """Calibration on the run's own text. keep: folder of kept moments, read and written."""
        return self.options.calibration(keep, self.set_aside)


def kept_in(text: str) -> str:
    """Facts of run.json that nobody may edit: all except the free ones and paths."""
    facts = document(text)
    return json.dumps({name: value for name, value in facts.items() if name not in (*FREE, *PLACES)}, sort_keys=True)


def installed_version(package: str) -> str:
    """Version of an installed package; a plain checkout on the path has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
