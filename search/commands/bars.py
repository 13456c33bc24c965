"""Bars in a terminal, and how long work will take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from grouper.progress import Progress
from search.commands.console import ERR

WORTH_SAYING = 60  # seconds that are left


@contextmanager
def bar(what: str, says_how_long: bool = False) -> Iterator[Progress]:
    """A bar of steps with a note. transformers' own bars stay out of the way. says_how_long: once, where much is left;
    for work that nobody estimated before."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _bars() as bars:
        task = bars.add_task(what, total=None, note="")

        left = TimeLeft()

        def update(done: int, total: int, note: str) -> None:
            bars.update(task, completed=done, total=total, note=note)
            seconds = left.after(done, total)
            if says_how_long and seconds is not None and seconds > WORTH_SAYING:
                held = f"{memory_in_use() / 1e9:.1f} GB in use"
                ERR.print(f"{what}: about {duration(seconds)} left after {note}, {held}", soft_wrap=True)

        yield update


class TimeLeft:
    """Of work in parts, some of which may have been done before it was looked at; where fewer are done than before,
    other work began."""

    def __init__(self) -> None:
        self.began, self.last, self.said = time.monotonic(), 0, False
        self.first: int | None = None

    def after(self, done: int, total: int) -> float | None:
        """Seconds that are left, once: when the first part was done that is not the first that was told of."""
        if self.first is None or done < self.last:
            self.began, self.first, self.said = time.monotonic(), done, False
        self.last = done
        if self.said or done == self.first:
            return None
        self.said = True
        return (time.monotonic() - self.began) / (done - self.first) * (total - done)


def memory_in_use() -> int:
    """Bytes that are this process's and its workers' alone."""
    import psutil

    me, found = psutil.Process(), 0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):  # one that has just ended
            found += process.memory_full_info().uss
    return found


def duration(seconds: float) -> str:
    """For people.

    >>> duration(50), duration(700), duration(9000)
    ('50 s', '12 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _bars() -> Bars:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Bars(*columns, console=ERR, transient=True, disable=not ERR.is_terminal)
