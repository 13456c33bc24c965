"""Steps of Adam, and what happens where an operation cannot give the same numbers every time."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from grouper.refinement.descent import Descent, _exactly


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def descent(weight: Tensor, loss) -> Descent:
    stream = torch.ones(4, 1, 2)
    order = torch.arange(4).view(4, 1)  # four steps of one window
    return Descent([(weight, 0.5)], loss, stream, stream, order, "cpu")


def test_rates_fall_linearly_to_nothing():
    weight = torch.zeros(2, requires_grad=True)
    descent(weight, lambda given, _wanted: -(weight * given).sum()).run(lambda *_: None)
    # a gradient that stays the same makes every step of Adam as long as its rate: 0.5 * (1 + 3/4 + 1/2 + 1/4)
    assert weight.tolist() == pytest.approx([1.25, 1.25], abs=1e-4)


def test_an_operation_without_a_deterministic_form_is_used_all_the_same():
    weight, asked = torch.zeros(2, requires_grad=True), []

    def loss(given: Tensor, _wanted: Tensor) -> Tensor:
        asked.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if not asked[-1]:
            raise RuntimeError("scatter_everything does not have a deterministic implementation")
        return -(weight * given).sum()

    torch.use_deterministic_algorithms(True)
    descent(weight, loss).run(lambda *_: None)
    assert asked == [False, True, True, True, True]
    assert weight.tolist() == pytest.approx([1.25, 1.25], abs=1e-4)


def test_other_mistakes_are_raised():
    weight = torch.zeros(2, requires_grad=True)

    def loss(_given: Tensor, _wanted: Tensor) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        descent(weight, loss).run(lambda *_: None)


def state() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize("asked", [True, False])
def test_exactness_is_for_the_block_and_where_it_was_asked_for(asked):
    torch.use_deterministic_algorithms(asked, warn_only=asked)
    with _exactly():
        assert state() == (asked, False)
    assert state() == (asked, asked)
