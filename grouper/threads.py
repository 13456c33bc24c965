"""Use of threads with reproducible sums: each sum is computed by one thread, several sums in parallel, so that results
do not depend on the number of threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with a single torch thread until the block ends. Results then do not depend on the number of cores, and
    parallel processes do not compete for cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def in_background(give_up: Callable[[], object] = lambda: None) -> Iterator[Callable[..., None]]:
    """Yields submit(work, *arguments): runs jobs one at a time on a background thread, each after the one before. An
    error of a job is raised by the next call, or at the end of the block, which waits for all jobs. On an exception in
    the block, `give_up` is called so that the running job can stop early."""
    with ThreadPoolExecutor(1, thread_name_prefix="background") as thread:
        before: Future | None = None

        def do(work: Callable[..., object], *arguments: object) -> None:
            nonlocal before
            if before:
                before.result()
            before = thread.submit(work, *arguments)

        try:
            yield do
            if before:
                before.result()
        except BaseException:
            give_up()
            raise


@contextmanager
def made_ahead(make: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Callable[[Item], Result]]:
    """Yields a function that returns `make(item)` while a thread prepares the next item. items: in the order of
    requests; an item requested out of turn is made on request. Errors are raised where their item is requested."""
    following = dict(pairwise(items))
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: dict[Item, Future[Result]] = {}

        def made(item: Item) -> Result:
            future = waiting.pop(item, None)
            for other in waiting.values():
                other.cancel()
            waiting.clear()
            result = make(item) if future is None else future.result()
            if item in following:
                waiting[following[item]] = thread.submit(make, following[item])
            return result

        try:
            yield made
        finally:
            for future in waiting.values():
                future.cancel()


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], device: str) -> Iterator[Result]:
    """Results of `work` for every item, in order. On a CPU each item runs on one thread, as many at a time as torch has
    threads; a GPU runs one after the other. Workers inherit the caller's grad and inference mode."""
    import torch

    if "cuda" in str(device):
        yield from map(work, items)
        return
    threads, inference, gradients = torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work(item)

    with one_thread(), ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        running: deque[Future] = deque()
        for item in items:
            running.append(pool.submit(alone, item))
            if len(running) == threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
