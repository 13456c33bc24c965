"""Data for the steps of a descent: windows drawn at random or, if examples are padded, one part per step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grouper.ranks import ALONE, Ranks


class Course(ABC):
    """Steps on examples of one length. share: this rank's share of the examples of a step. taken: number of steps so
    far. alike: whether every step is the same computation on other numbers, so that it can become a CUDA graph.
    all_see: whether every rank has a share of every step."""

    alike: bool
    all_see: bool
    share: float
    taken: int = 0
    graph: "torch.cuda.CUDAGraph | None" = None

    @abstractmethod
    def take_up(self) -> None:
        """Load the examples of the next step."""

    @abstractmethod
    def loss(self) -> Tensor:
        """Mean loss over this rank's share of the step's examples."""


class Drawn(Course):
    """Windows drawn at random into buffers that stay the same from step to step.

    of(given, wanted): loss of a batch [windows, tokens, D]. given, wanted: [n, tokens, D], on any device. order:
    windows of each step [steps, windows]. Each of several ranks gets its share of them.
    """

    alike = True

    def __init__(
        self,
        of: Callable[[Tensor, Tensor], Tensor],
        given: Tensor,
        wanted: Tensor,
        order: Tensor,
        device: str,
        ranks: Ranks = ALONE,
    ):
        self.of, self.given, self.wanted = of, given, wanted
        mine = order[:, ranks.rank :: ranks.size]
        self.orders = {stream.device: mine.to(stream.device) for stream in (given, wanted)}
        self.share, self.all_see = mine.shape[1] / order.shape[1], order.shape[1] >= ranks.size
        self.batch = [torch.empty((mine.shape[1], *given.shape[1:]), device=device) for _ in range(2)]

    def take_up(self) -> None:
        for batch, source in zip(self.batch, (self.given, self.wanted)):
            rows = self.orders[source.device][self.taken]
            if source.device == batch.device:
                torch.index_select(source, 0, rows, out=batch)
            else:
                batch.copy_(source[rows], non_blocking=True)
        self.taken += 1

    def loss(self) -> Tensor:
        return self.of(*self.batch)


class ByPart(Course):
    """One part of the examples per step, for parts that have arguments of their own; each step belongs to one rank.

    of(number): loss of a part. order: number of the part for each step.
    """

    alike = False

    def __init__(self, of: Callable[[int], Tensor], order: Tensor, ranks: Ranks = ALONE):
        self.of, self.order, self.ranks, self.share, self.all_see = of, order.tolist(), ranks, 1.0, ranks.alone

    def take_up(self) -> None:
        self.number = self.order[self.taken]
        self.share = float(self.ranks.alone or self.taken % self.ranks.size == self.ranks.rank)
        self.taken += 1

    def loss(self) -> Tensor:
        return self.of(self.number)


def turns_of(tokens: Sequence[int], steps: int, larger: Sequence[float] | None = None) -> list[int]:
    """Text of each step: every text gets steps in proportion to its tokens, spread evenly. larger: size of
    each text's steps, relative to those that `steps` counts; it gets fewer steps by that factor, to see as many tokens.

    >>> turns_of([300, 100], 8), turns_of([100], 3), turns_of([100, 100], 8, [1, 2])
    ([0, 0, 1, 0, 0, 0, 1, 0], [0, 0, 0], [0, 1, 0, 0, 1, 0])
    """
    weights = [count / times for count, times in zip(tokens, larger or [1.0] * len(tokens))]
    taken, turns = [0] * len(tokens), []
    for step in range(1, max(1, round(steps * sum(weights) / sum(tokens))) + 1):
        behind = [weight * step / sum(weights) - done for weight, done in zip(weights, taken)]
        turns.append(behind.index(max(behind)))
        taken[turns[-1]] += 1
    return turns
