"""Gradients of several ranks become their sums, whichever way they travel."""

import pytest
import torch
from rank_threads import side_by_side
from torch import Tensor

from grouper.ranks import Ranks
from grouper.refinement.summing import SummedGradients


def tensors() -> list[Tensor]:
    return [torch.ones(3, requires_grad=True), torch.full((2, 2), 2.0, requires_grad=True)]


def loss(of: list[Tensor], rank: int) -> Tensor:
    """Its gradients: rank + 1 for the first tensor, 10 times that for the second."""
    return (rank + 1) * (of[0].sum() + 10 * of[1].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("while_it_runs", [True, False])
def test_all_ranks_get_the_sum(dtype, while_it_runs):
    def work(ranks: Ranks) -> list[Tensor]:
        mine = tensors()
        summed = SummedGradients(mine, ranks, dtype)
        if while_it_runs:
            with summed.during_backward():
                loss(mine, ranks.rank).backward()
        else:
            loss(mine, ranks.rank).backward()
            summed.afterwards()
        loss(mine, ranks.rank).backward()  # no hook is left: this adds the rank's own alone
        return [tensor.grad for tensor in mine]

    for rank, (first, second) in enumerate(side_by_side(3, work)):
        assert first.dtype == torch.float32
        assert first.tolist() == [6.0 + rank + 1] * 3 and second.flatten().tolist() == [60.0 + 10 * (rank + 1)] * 4


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, 0.0), (torch.float32, 2**-9)])
def test_what_travels_is_rounded_before_it_is_summed(dtype, expected):
    """1 + 2^-9 has no bfloat16 of its own, and is 1 there."""

    def work(ranks: Ranks) -> float:
        mine = torch.zeros(1, requires_grad=True)
        with SummedGradients([mine], ranks, dtype).during_backward():
            (mine * (1 + 2**-9 if ranks.first else -1)).sum().backward()
        return mine.grad.item()

    assert side_by_side(2, work) == [expected, expected]


def test_a_rank_without_a_part_in_a_step_has_nothing_to_add():
    def work(ranks: Ranks) -> list[Tensor]:
        mine = tensors()
        if ranks.first:
            loss(mine, 0).backward()
        SummedGradients(mine, ranks, torch.float32).afterwards()
        return [tensor.grad for tensor in mine]

    for first, second in side_by_side(2, work):
        assert first.tolist() == [1.0] * 3 and second.flatten().tolist() == [10.0] * 4


def test_a_step_that_failed_leaves_nothing_behind():
    def work(ranks: Ranks) -> float:
        mine = torch.ones(1, requires_grad=True)
        summed = SummedGradients([mine], ranks, torch.float32)
        with pytest.raises(RuntimeError, match="on the way"), summed.during_backward():
            mine.sum().backward()
            raise RuntimeError("on the way")
        mine.grad = None
        with summed.during_backward():
            (2 * mine).sum().backward()
            assert len(summed.travelling) == 1
        return mine.grad.item()

    assert side_by_side(2, work) == [4.0, 4.0]
