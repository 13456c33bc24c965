"""One thread for what is summed, several sums side by side: results are the same however many threads there are."""

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
    """What this process computes until the block ends is computed by one thread: sums then come out the same whatever
    the number of cores, and processes side by side do not fight for them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def in_background(give_up: Callable[[], object] = lambda: None) -> Iterator[Callable[..., None]]:
    """Gives a function that has a thread do `work(*arguments)`, when the work before is done, and returns then; it
    raises what went wrong with that. When the block ends all is done; where it ends by an exception, `give_up` is
    called, which may tell the work to be short."""
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
    """Yields a function that returns `make(item)`, and has a thread make the one behind it meanwhile. items: in the
    order in which they are asked for; one that is not asked for in its turn is made when it is. Exceptions are raised
    where their item is asked for."""
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
    """`work` of every item, in their order. On CPU each item is one thread's, as many at a time as torch has threads; a
    GPU takes one after the other. What grad and inference mode are here, they are there."""
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
