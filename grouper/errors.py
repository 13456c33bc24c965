"""The one exception that the command line turns into one line, and errors of others that need a cure of their own."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

FULL = re.compile(r"No space left on device|File too large|Disk quota exceeded|requested and \d+ written")


class GrouperError(Exception):
    """Something the user can mend. The message says what was wrong, what was expected and what to do."""


@contextmanager
def as_one_line(what: str) -> Iterator[None]:
    """Any error of a library as a GrouperError: what could not be done, and the last line of why. Memory or a disk that
    is full stays what it is."""
    try:
        yield
    except (GrouperError, MemoryError):
        raise
    except Exception as error:
        if is_memory_short(error) or is_disk_full(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise GrouperError(f"{what} ({type(error).__name__}: {lines[-1] if lines else 'no reason given'})") from error


def is_memory_short(error: BaseException) -> bool:
    """Whether memory ran out, by torch's words for it, too."""
    short = ("OutOfMemoryError", "DefaultCPUAllocator", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in f"{type(error).__name__}: {error}" for word in short)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk, a quota or a limit on the size of files is behind this error, whichever library raised it:
    those of safetensors, numpy and torch are no OSError, or have no number."""
    while True:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return True
        if FULL.search(str(error)):
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__
