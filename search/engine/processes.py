"""Processes that search layers side by side."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process

from grouper.errors import GrouperError
from search.stopping import stop_workers

SAFE = "PYTHONSAFEPATH"  # what lies in the current folder, a model's files perhaps, is not imported


@contextmanager
def workers(count: int, device: str) -> Iterator[ProcessPoolExecutor | None]:
    """So many processes, started at once, for starting takes seconds; None for one. Raises GrouperError where one of
    them is killed."""
    if count < 2:
        yield None
        return
    with _safe_path():  # the first thing that is started
        pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_end_with_parent)
    with pool:
        try:
            with _safe_path():
                for _ in range(count):
                    pool.submit(_get_ready, device)
            yield pool
        except BrokenProcessPool as error:
            stop_workers()
            why = "a process that searched layers was killed, perhaps because memory is short: give --jobs 1, or fewer"
            raise GrouperError(f"{why}; layers that are done are kept, and the same command goes on") from error
        except BaseException:
            stop_workers()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _safe_path() -> Iterator[None]:
    """What is started until the block ends looks for Python's own modules in no other place, then gets our paths."""
    before = os.environ.get(SAFE)
    os.environ[SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE]
        else:
            os.environ[SAFE] = before


def _end_with_parent() -> None:
    """In a worker: end as soon as the command has, even if that was killed. It would wait for work for ever, and keep a
    GPU's memory."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _get_ready(device: str) -> None:
    """In a worker: what is imported and set up once. A moment is spent, so that each worker gets one of these."""
    import torch

    torch.linalg.eigvalsh(torch.eye(2, device=device))
    time.sleep(0.2)
