"""Digests of files that a search wrote, in RUN/digests/: of each layer and of all layouts.

They are written before the files. A search that was killed in between goes on: it writes those files again.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from grouper.errors import GrouperError
from grouper.names import without_secrets
from grouper.outputs import write_json
from grouper.schema import damage_said, document, fitted, text_of

LAYOUTS = "layouts"  # the record of all of them


@dataclass(frozen=True)
class _Record:
    """Digests by file, as the run's folder has them."""

    files: dict[str, str]


@dataclass(frozen=True)
class Digests:
    """Records of one run, which lies in the folder `run`. Runs of older versions have none."""

    run: Path

    def note(self, record: str, texts: dict[Path, str]) -> None:
        """texts: of files that are about to be written."""
        path = self._path(record)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"files": {self._name(f): _digest(without_secrets(t).encode()) for f, t in texts.items()}})

    def check(self, record: str, file: Path) -> None:
        """Raise GrouperError where a file is not what was noted."""
        path = self._path(record)
        if not path.is_file():
            return
        with damage_said(path, "delete it, and nothing is compared with it"):
            known = _read(text_of(path)).files
        if known.get(self._name(file)) != _digest(file.read_bytes()):
            raise GrouperError("it is not what the search wrote")

    def _path(self, record: str) -> Path:
        return self.run / "digests" / f"{record}.json"

    def _name(self, file: Path) -> str:
        return file.relative_to(self.run).as_posix()


@lru_cache(8)
def _read(text: str) -> _Record:
    return fitted(document(text), _Record)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
