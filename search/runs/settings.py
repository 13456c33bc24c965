"""run.json: what a run was told and made with, and what follows from it."""

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

FREE = ("timings", "versions", "jobs", "device", "command", "model")  # may differ where a run goes on
PLACES = ("text", "images")  # which people correct who moved a file; their content is known by its digest
PACKAGES = ("kv-grouper", "torch", "numpy", "deap", "moocore")


@dataclass(frozen=True)
class RunSettings:
    """options: resolved. model: what opens it from anywhere. set_aside: whether stretches of the text were, as older
    versions did not do. text_digest: of the tokens that were calibrated on, None without text. timings: in seconds."""

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
        """Options and facts side by side."""
        facts = asdict(self)
        return json.dumps({**facts.pop("options"), **facts}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunSettings":
        """Raises GrouperError where the text is no run's settings. What an older Grouper did not know gets its
        default."""
        data = document(text)
        options = fitted(data, SearchOptions)
        options.check()
        return replace(fitted({**data, "options": {}}, cls), options=options)

    def changed(self, other: "RunSettings") -> list[str]:
        """The names of what differs and must not."""
        mine, theirs = (json.loads(settings.to_json()) for settings in (self, other))
        return sorted(k for k in mine if k not in FREE and mine[k] != theirs[k])

    @property
    def model_folder(self) -> Path | None:
        """The model's folder, where it is one of this disk."""
        return Path(self.model) if Path(self.model).is_dir() else None

    def open_checkpoint(self, local: bool = True) -> Checkpoint:
        """The model that was searched; local: on this disk, whole. Raises GrouperError where its files are others
        now."""
        checkpoint = Checkpoint.open(self.model, self.revision)
        checkpoint = checkpoint.local() if local else checkpoint
        if checkpoint.fingerprint != self.fingerprint:
            raise GrouperError(f"{self.model} is not the model that was searched (its files changed): search again")
        return checkpoint

    def calibration(self, keep: str | os.PathLike | None = None) -> Calibration | None:
        """On the run's own text. keep: a folder where moments are kept and looked for."""
        return self.options.calibration(keep, self.set_aside)


def kept_in(text: str) -> str:
    """Facts of run.json that nobody may edit: all but those that are free, and where files lie."""
    facts = document(text)
    return json.dumps({name: value for name, value in facts.items() if name not in (*FREE, *PLACES)}, sort_keys=True)


def installed_version(package: str) -> str:
    """A checkout on the path has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
