"""Several processes that work on one thing: those that `torchrun` or `accelerate launch` started, on one machine or on
several that see the same folders. Started alone, all of this does nothing.

Every rank runs the same program. What can be shared out is; what is written is written by the first rank, but for the
layers of a search, which each rank writes itself.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from grouper.errors import GrouperError
from grouper.outputs import locked

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # a rank may wait for another one's layers


class FirstFailed(GrouperError):
    """What the first rank raised, and has said."""


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's items: every size-th."""
        return items[self.rank :: self.size]

    def portion(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's items: neighbours, so that all ranks' one after the other are the items again."""
        begin, end = (len(items) * (self.rank + i) // self.size for i in (0, 1))
        return items[begin:end]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in their order, on every rank."""
        if self.alone:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def first_does(self, call: Callable[[], T]) -> T:
        """What `call` returns on the first rank, on every rank. What it raises there, all raise."""
        if self.alone:
            return call()
        from torch import distributed

        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = call()
            except GrouperError as error:
                answer[1] = error
        distributed.broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1] if self.first else FirstFailed(str(answer[1]))
        return answer[0]

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather(None)

    def add_up(self, tensor: "Tensor") -> None:
        """Every rank's tensors, summed in place."""
        if not self.alone:
            from torch import distributed

            distributed.all_reduce(tensor)

    def adding_up(self, tensor: "Tensor") -> Any:
        """The same, begun: `wait()` of what is returned ends it. Of several ranks alone."""
        from torch import distributed

        return distributed.all_reduce(tensor, async_op=True)

    def send(self, tensor: "Tensor", source: int = 0) -> None:
        """One rank's tensor to all, in place; contiguous."""
        if not self.alone:
            from torch import distributed

            distributed.broadcast(tensor, source)


ALONE = Ranks()


@contextmanager
def locked_by_first(ranks: Ranks, output: Path) -> Iterator[None]:
    """`locked` for all ranks together."""
    with ExitStack() as stack:
        ranks.first_does(lambda: stack.enter_context(locked(output)))
        yield


def started_ranks() -> Ranks:
    """The processes that this one was started with, as the launchers' environment says. Raises GrouperError where that
    is half there."""
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return ALONE
    return _joined()


@lru_cache(maxsize=1)
def _joined() -> Ranks:
    import torch
    from torch import distributed

    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # or transformers loads weights on the first rank alone
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, timeout=PATIENCE)
            atexit.register(distributed.destroy_process_group)
    except (RuntimeError, ValueError) as error:
        last = str(error).strip().splitlines()[-1]
        raise GrouperError(f"cannot join the processes that WORLD_SIZE speaks of ({last}): use torchrun") from error
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def own_gpu() -> str:
    """The device of this process: each of several takes one of its machine's GPUs."""
    return f"cuda:{local_rank()}" if ranks_here() > 1 else "cuda"


def ranks_here() -> int:
    """Processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
