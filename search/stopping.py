"""Stopping by SIGINT and SIGTERM: a command ends within two seconds."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

GRACE = 1.5  # seconds from the signal that the main thread has for cleaning up


class Stopped(BaseException):
    """Request to end, raised on a signal. code: exit code of the command, 130 or 143."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def stop_on_signals(say: Callable[[], None] = lambda: None) -> threading.Event:
    """Raise Stopped in the main thread on either signal. A main thread deep in a computation may notice late; then the
    process is ended for it after GRACE seconds. Before that, `say` is called, unless the returned event was set.
    Nothing is lost, because outputs appear whole or not at all; the next run removes leftovers."""
    heard, tell = os.pipe()
    said = threading.Event()
    if hasattr(os, "set_blocking"):  # missing on Windows before Python 3.12, where a write may block
        os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)

    def watch() -> None:
        number = os.read(heard, 1)[0]
        if number not in (signal.SIGINT, signal.SIGTERM):
            return
        time.sleep(GRACE)
        stop_workers()
        try:
            if not said.is_set():
                say()
        finally:
            os._exit(128 + number)

    threading.Thread(target=watch, daemon=True, name="signals").start()
    return said


def stop_workers() -> None:
    """End the processes that search layers for this process."""
    for process in multiprocessing.active_children():
        process.kill()
