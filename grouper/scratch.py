"""Folders in the system's temporary one. A process that is killed cannot remove its own; the next one does."""

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PREFIX, LOCK = "grouper-", ".lock"
NEW = 60  # seconds: a folder may be made and not yet locked


class ScratchFolder:
    """A new folder, which is removed by `remove` or with this object. Its lock is held as long."""

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
    """Remove the folders of processes that are no more: those whose lock nobody holds."""
    from filelock import FileLock, Timeout

    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            if (folder / LOCK).is_file() and time.time() - folder.stat().st_mtime > NEW:
                with FileLock(folder / LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
