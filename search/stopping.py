"""Stopping within two seconds: what SIGINT and SIGTERM do to a command."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

GRACE = 1.5  # seconds that the main thread has to clean up, from the signal on


class Stopped(BaseException):
    """A signal asks the command to end. code: its exit code, 130 or 143."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def stop_on_signals(say: Callable[[], None] = lambda: None) -> threading.Event:
    """Raise Stopped in the main thread on either signal. One that is deep in a computation hears late: then this ends
    the process for it, and calls `say` before, unless the event that is returned was set. Outputs appear whole or not
    at all, so that nothing is lost; the next run sweeps up."""
    heard, tell = os.pipe()
    said = threading.Event()
    if hasattr(os, "set_blocking"):  # on Windows from Python 3.12 on, where it may block
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
    """End the processes that search layers for this one."""
    for process in multiprocessing.active_children():
        process.kill()
