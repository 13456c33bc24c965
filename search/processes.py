"""Processes that search layers side by side: on Linux forked from one that has imported what they need."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process

from search.stopping import stop_workers

# elsewhere there is no fork, or (macOS) libraries that numpy is made with do not bear it
FORKED = sys.platform == "linux"


def prepare_workers(count: int) -> None:
    """Start the process that workers will be forked from, which imports meanwhile; for one worker, none."""
    if count > 1 and FORKED:
        from multiprocessing.forkserver import ensure_running, set_forkserver_preload

        set_forkserver_preload(["search.stage1", "fitness.spectral"])
        ensure_running()


@contextmanager
def workers(count: int, device: str) -> Iterator[ProcessPoolExecutor | None]:
    """So many processes, started at once, for starting takes seconds; None for one."""
    if count < 2:
        yield None
        return
    prepare_workers(count)
    context = get_context("forkserver" if FORKED else "spawn")
    with ProcessPoolExecutor(count, context, initializer=_end_with_parent) as pool:
        try:
            for _ in range(count):
                pool.submit(_get_ready, device)
            yield pool
        except BaseException:
            stop_workers()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
    """In a worker: what is set up once. A moment is spent, so that each worker gets one of these."""
    import torch

    torch.linalg.eigvalsh(torch.eye(2, device=device))
    time.sleep(0.2)
