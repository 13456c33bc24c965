"""GrouperError, which the command line prints as one line, and detection of library errors that need advice of their
own."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

FULL = re.compile(r"No space left on device|File too large|Disk quota exceeded|requested and \d+ written")


class GrouperError(Exception):
    """An error that the user can fix. The message says what was wrong, what was expected and what to do."""


@contextmanager
def as_one_line(what: str) -> Iterator[None]:
    """Turn any library error into a GrouperError with the failed action and the last line of the cause. Errors of full
    memory or a full disk pass unchanged."""
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
    """Whether memory ran out, torch's own errors included."""
    short = ("OutOfMemoryError", "DefaultCPUAllocator", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in f"{type(error).__name__}: {error}" for word in short)


def is_disk_full(error: BaseException) -> bool:
    """Whether this error comes from a full disk, a quota or a file size limit, whichever library raised it. Such errors
    of safetensors, numpy and torch are not OSErrors, or lack an errno."""
    while True:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return True
        if FULL.search(str(error)):
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__
