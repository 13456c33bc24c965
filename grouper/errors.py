"""The one exception that the command line turns into one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class GrouperError(Exception):
    """Something the user can mend. The message says what was wrong, what was expected and what to do."""


@contextmanager
def as_one_line(what: str) -> Iterator[None]:
    """What a library raises, whatever that is, as a GrouperError: what could not be done, and the last line of why."""
    try:
        yield
    except (GrouperError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise GrouperError(f"{what} ({type(error).__name__}: {lines[-1] if lines else 'no reason given'})") from error
