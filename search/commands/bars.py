"""Progress of long work: bars in a terminal, occasional lines elsewhere, and estimates of the time left."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from grouper.progress import Progress, duration
from search.commands.console import ERR

WORTH_SAYING = 60  # seconds left from which an estimate is printed
SILENT = 25  # longest time between two lines without a terminal, in seconds
CALM = 10  # shortest time between two lines where parts finish faster, in seconds
FEW = 200  # up to so many parts (layers, layouts) each gets a line; more parts, such as steps, get none of their own


@contextmanager
def bar(what: str, says_how_long: bool = False) -> Iterator[Progress]:
    """Progress bar with a note. Without a terminal: a line for each finished part, and one every SILENT seconds. The
    progress bars of transformers are hidden. says_how_long: print the time left once if it is long, for work without an
    earlier estimate."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _bars() as bars, lines(what) as lively:
        task = bars.add_task(what, total=None, note="")
        said_of = 0  # number of works whose time was printed

        def update(done: int, total: int, note: str) -> None:
            nonlocal said_of
            bars.update(task, completed=done, total=total, note=note)
            left = lively.at(done, total, note)
            if left is None or said_of == lively.left.works:
                return
            said_of = lively.left.works
            if says_how_long and left > WORTH_SAYING:
                held = f"{memory_in_use() / 1e9:.1f} GB in use"
                ERR.print(f"{what}: about {duration(left)} left after {note}, {held}", soft_wrap=True)

        yield update


class TimeLeft:
    """Estimate of the time left of work in parts; parts finished before the first call do not count. A falling number
    of finished parts means that other work began: `works` counts these beginnings."""

    def __init__(self) -> None:
        self.works, self.last, self.total = 0, 0, 0
        self.began = self.at = time.monotonic()
        self.first: int | None = None

    def after(self, done: int, total: int) -> float | None:
        """Seconds left, given the parts that are done. None until more parts are done than at the first call."""
        now = time.monotonic()
        if self.first is None or done < self.last:
            self.began, self.first, self.works = now, done, self.works + 1
        if done != self.last:
            self.at = now
        self.last, self.total = done, total
        return self.now()

    def now(self) -> float | None:
        """Seconds left now, some time after the last finished part."""
        if self.first is None or self.last == self.first:
            return None
        of_all = (self.at - self.began) / (self.last - self.first) * (self.total - self.last)
        return max(of_all - (time.monotonic() - self.at), 0.0)


class Lively:
    """State of long work, and the lines that report it."""

    def __init__(self, what: str):
        self.what, self.note, self.left = what, "", TimeLeft()
        self.began = self.spoke = time.monotonic()
        self.news = threading.Event()

    def at(self, done: int, total: int, note: str) -> float | None:
        """Record the progress. Returns the seconds left, or None if unknown."""
        news = done > self.left.last and total <= FEW and time.monotonic() - self.spoke >= CALM
        self.note, left = note.removeprefix(f"{self.what}, "), self.left.after(done, total)
        if news:
            self.news.set()
        return left

    @property
    def line(self) -> str:
        done = [f"{self.left.last} of {self.left.total} done"] if self.left.total else []
        seconds = self.left.now() if self.left.last < self.left.total else None  # other work may follow
        left = [] if seconds is None else [f"about {duration(seconds)} left"]
        so_far = f"{duration(time.monotonic() - self.began)} so far"
        return f"{self.what}: {', '.join([*done, *([self.note] if self.note else []), so_far, *left])}"


@contextmanager
def lines(what: str) -> Iterator[Lively]:
    """Print progress where stderr is not a terminal: when a part is done, and every SILENT seconds from a thread."""
    lively, done = Lively(what), threading.Event()

    def speak() -> None:
        while lively.news.wait(SILENT) or not done.is_set():
            if done.is_set():
                return
            lively.news.clear()
            lively.spoke = time.monotonic()
            ERR.print(lively.line, soft_wrap=True)
            ERR.file.flush()

    speaker = threading.Thread(target=speak, daemon=True, name="lines")
    if not ERR.is_terminal:
        speaker.start()
    try:
        yield lively
    finally:
        done.set()
        lively.news.set()


def memory_in_use() -> int:
    """Bytes of memory that belong to this process and its workers alone."""
    import psutil

    me, found = psutil.Process(), 0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):  # a worker that has just ended
            found += process.memory_full_info().uss
    return found


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
