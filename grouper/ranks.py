"""Processes that work together: those started by `torchrun` or `accelerate launch`, on one machine or on several that
share folders. A single process does no communication.

Every rank runs the same program. Work is shared out where possible. Only the first rank writes files, except for the
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
PATIENCE = timedelta(days=7)  # longest wait of a rank, e.g. for another one's layers


class FirstFailed(GrouperError):
    """Error of the first rank, which has already reported it."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `size` ranks."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Items of this rank: every size-th one."""
        return items[self.rank :: self.size]

    def portion(self, items: Sequence[T]) -> Sequence[T]:
        """Items of this rank: a contiguous portion. The portions of all ranks in order are the items."""
        begin, end = (len(items) * (self.rank + i) // self.size for i in (0, 1))
        return items[begin:end]

    def gather(self, value: T) -> list[T]:
        """Values of all ranks in order, returned on every rank."""
        if self.alone:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def first_does(self, call: Callable[[], T]) -> T:
        """Result of `call`, made on the first rank only and returned on every rank. An error there is raised on every
        rank."""
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
        """Wait until every rank has arrived here."""
        self.gather(None)

    def add_up(self, tensor: "Tensor") -> None:
        """Sum the tensor over all ranks, in place."""
        if not self.alone:
            from torch import distributed

            distributed.all_reduce(tensor)

    def adding_up(self, tensor: "Tensor") -> Any:
        """Start summing the tensor over all ranks; `wait()` of the returned object completes it. Only for several
        ranks."""
        from torch import distributed

        return distributed.all_reduce(tensor, async_op=True)

    def send(self, tensor: "Tensor", source: int = 0) -> None:
        """Send the tensor of one rank to all, in place. It must be contiguous."""
        if not self.alone:
            from torch import distributed

            distributed.broadcast(tensor, source)


ALONE = Ranks()


@contextmanager
def locked_by_first(ranks: Ranks, output: Path) -> Iterator[None]:
    """Hold `locked` on behalf of all ranks."""
    with ExitStack() as stack:
        ranks.first_does(lambda: stack.enter_context(locked(output)))
        yield


def started_ranks() -> Ranks:
    """Ranks that this process was started with, according to the launcher's environment variables. Raises GrouperError
    if some of them are missing."""
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
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # otherwise only the first rank loads weights
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, timeout=PATIENCE)
            atexit.register(distributed.destroy_process_group)
    except (RuntimeError, ValueError) as error:
        last = str(error).strip().splitlines()[-1]
        raise GrouperError(f"cannot join the processes that WORLD_SIZE speaks of ({last}): use torchrun") from error
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def own_gpu() -> str:
    """Device of this process: each rank of a machine takes one of its GPUs."""
    return f"cuda:{local_rank()}" if ranks_here() > 1 else "cuda"


def ranks_here() -> int:
    """Number of ranks on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
