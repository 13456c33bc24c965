"""Digests of files of a run, in RUN/digests/: of each layer, of all layouts, and of each file that commands write again
and again.

They are written before the files. A search that was killed in between goes on: it writes those files again.
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

LAYOUTS = "layouts"  # the record of all of them


@dataclass(frozen=True)
class _Record:
    """Digests by file, as the run's folder has them. before: of files that are being replaced, which a kill leaves."""

    files: dict[str, str]
    before: dict[str, str] = field(default_factory=dict)


def whole(text: str) -> str:
    """All of a text."""
    return text


@dataclass(frozen=True)
class Digests:
    """Records of one run, which lies in the folder `run`. Runs of older versions have none."""

    run: Path

    def note(self, record: str, texts: dict[Path, str], before: dict[Path, str] | None = None) -> None:
        """texts: of files that are about to be written. before: texts that may stand there yet."""
        path = self._path(record)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"files": self._digests(texts), **({"before": self._digests(before)} if before else {})})

    def write(self, file: Path, text: str, essence: Callable[[str], str] = whole) -> None:
        """Replace a file whose record has its name. A new file comes before its digest: run.json makes a folder ours.
        essence: the part of its text that nobody may edit."""
        try:
            before = {file: essence(text_of(file))}
        except (OSError, GrouperError):  # none that could be taken for ours
            before = {}
        new = {file: essence(without_secrets(text))}
        if before != new and (before or self._path(file.stem).is_file()):
            self.note(file.stem, new, before)
        write_text(file, text)
        self.note(file.stem, new)

    def check(self, record: str, file: Path, essence: Callable[[str], str] = whole) -> None:
        """Raise GrouperError where a file is not what was noted."""
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
