"""Worker processes that search layers in parallel."""

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

SAFE = "PYTHONSAFEPATH"  # nothing is imported from the current folder, which may hold a model's files


@contextmanager
def workers(count: int, device: str) -> Iterator[ProcessPoolExecutor | None]:
    """Pool of `count` processes, started at once because starting takes seconds; None for one. Raises GrouperError if
    one of them is killed."""
    if count < 2:
        yield None
        return
    with _safe_path():  # before the first process starts
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
    """Keep the current folder off the import path of processes started in the block; they get this process's path
    later."""
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
    """In a worker: end as soon as the command has ended, even if it was killed. Otherwise the worker would wait for
    work without end and occupy GPU memory."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _get_ready(device: str) -> None:
    """In a worker: import and set up once. A short sleep lets every worker get one of these calls."""
    import torch

    torch.linalg.eigvalsh(torch.eye(2, device=device))
    time.sleep(0.2)
