"""Ranks that are threads of one process: what they share and sum is tested without starting others."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any, TypeVar

from torch import Tensor

from grouper.ranks import Ranks

T = TypeVar("T")


@dataclass
class Table:
    """Where ranks lay down what others take up."""

    barrier: Barrier
    places: list[Any]


class Done:
    """Work that is done as soon as it is begun."""

    def wait(self) -> None:
        return None


@dataclass(frozen=True)
class ThreadRank(Ranks):
    table: Table = field(default_factory=lambda: Table(Barrier(1), [None]))

    def gather(self, value):
        self.table.places[self.rank] = value
        self.table.barrier.wait()
        values = list(self.table.places)
        self.table.barrier.wait()
        return values

    def first_does(self, call):
        return self.gather(call() if self.first else None)[0]

    def add_up(self, tensor: Tensor) -> None:
        tensor.copy_(sum(self.gather(tensor.clone())))

    def adding_up(self, tensor: Tensor) -> Any:
        self.add_up(tensor)
        return Done()

    def send(self, tensor: Tensor, source: int = 0) -> None:
        tensor.copy_(self.gather(tensor.clone())[source])


def side_by_side(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """What `work`(ranks) gives on each of `size` ranks."""
    table = Table(Barrier(size, timeout=60), [None] * size)

    def of(rank: int) -> T:
        try:
            return work(ThreadRank(rank, size, table))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(of, range(size)))
