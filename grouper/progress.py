"""How long work tells how far it is: one protocol for searching, measuring, refining and writing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]  # steps done, of so many, what it is at


def no_progress(done: int, total: int, note: str) -> None:
    """Tell nobody: the default wherever a function takes a Progress."""


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A Progress that is shown as a bar, in terminals and notebooks alike; for Python, the commands have their own.

    with progress_bar("searching") as progress:
        search("demo", "run", progress=progress)
    """
    from tqdm.auto import tqdm

    with tqdm(desc=what) as bar:

        def update(done: int, total: int, note: str) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(note)

        yield update
