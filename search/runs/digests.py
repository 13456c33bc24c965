"""Digests of a run's files, in RUN/digests/: of each layer, of all layouts, and of each file that commands write
repeatedly.

Digests are written before the files. If a search is killed in between, it writes those files again when it resumes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from grouper.errors import GrouperError
from grouper.names import without_secrets
from grouper.outputs import write_json, write_text
from grouper.schema import damage_said, document, fitted, text_of

LAYOUTS = "layouts"  # record of all layouts


@dataclass(frozen=True)
class _Record:
    """Digests by file name. before: digests of files that are being replaced, which remain if the process is killed."""

    files: dict[str, str]
    before: dict[str, str] = field(default_factory=dict)


def whole(text: str) -> str:
    """The text itself, for files that nobody may edit at all."""
    return text


@dataclass(frozen=True)
class Digests:
    """Records of the run in the folder `run`. Runs of older versions have none."""

    run: Path

    def note(self, record: str, texts: dict[Path, str], before: dict[Path, str] | None = None) -> None:
        """Write a record. texts: content of files that are about to be written. before: content that they may still
        have."""
        path = self._path(record)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"files": self._digests(texts), **({"before": self._digests(before)} if before else {})})

    def write(self, file: Path, text: str, essence: Callable[[str], str] = whole) -> None:
        """Write a file that has a record of its own: first the record, then the file. Only a new file comes before its
        record. essence: returns the part of the text that nobody may edit."""
        try:
            before = {file: essence(text_of(file))}
        except (OSError, GrouperError):  # no earlier file of Grouper's
            before = {}
        new = {file: essence(without_secrets(text))}
        if before != new and (before or self._path(file.stem).is_file()):
            self.note(file.stem, new, before)
        write_text(file, text)
        self.note(file.stem, new)

    def has(self, record: str) -> bool:
        """Whether there is such a record."""
        return self._path(record).is_file()

    def check(self, record: str, file: Path, essence: Callable[[str], str] = whole) -> None:
        """Raise GrouperError if a file differs from its record."""
        path = self._path(record)
        if not path.is_file():
            return
        with damage_said(path, "delete it, and nothing is compared with it"):
            known = _read(text_of(path))
        found, name = _digest(essence(text_of(file))), self._name(file)
        if found not in (known.files.get(name), known.before.get(name)):
            raise GrouperError(f"it is not what Grouper wrote; to keep the change, delete {path}")

    def _digests(self, texts: dict[Path, str]) -> dict[str, str]:
        return {self._name(file): _digest(without_secrets(text)) for file, text in texts.items()}

    def _path(self, record: str) -> Path:
        return self.run / "digests" / f"{record}.json"

    def _name(self, file: Path) -> str:
        return file.relative_to(self.run).as_posix()


@lru_cache(8)
def _read(text: str) -> _Record:
    return fitted(document(text), _Record)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
