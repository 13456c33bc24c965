"""Folders in the system's temporary folder. A killed process cannot remove its own; the next process does."""

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PREFIX, LOCK = "grouper-", ".lock"
NEW = 60  # seconds: a new folder may not be locked yet


class ScratchFolder:
    """New temporary folder. It is removed by `remove` or together with this object, and locked until then."""

    def __init__(self) -> None:
        from filelock import FileLock

        sweep_scratch()
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        self.path = Path(self._folder.name)
        self._lock = FileLock(self.path / LOCK)
        self._lock.acquire()

    def remove(self) -> None:
        self._lock.release()
        self._folder.cleanup()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def sweep_scratch() -> None:
    """Remove the folders of processes that have ended, recognised by locks that nobody holds."""
    from filelock import FileLock, Timeout

    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            if (folder / LOCK).is_file() and time.time() - folder.stat().st_mtime > NEW:
                with FileLock(folder / LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
