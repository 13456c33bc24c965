"""Progress reports of long work: one protocol for searching, measuring, refining and writing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]  # steps done, total steps, current activity


def no_progress(done: int, total: int, note: str) -> None:
    """Ignore progress: the default of every function that takes a Progress."""


def duration(seconds: float) -> str:
    """Duration in a readable unit.

    >>> duration(50), duration(700), duration(9000)
    ('50 s', '12 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """Progress shown as a bar, in terminals and notebooks alike. It is for use from Python; the commands have their own
    bar.

    with progress_bar("searching") as progress:
        search("demo", "run", progress=progress)
    """
    from tqdm.auto import tqdm

    with tqdm(desc=what) as bar:

        def update(done: int, total: int, note: str) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(note)

        yield update
