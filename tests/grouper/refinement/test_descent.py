"""Steps of Adam, and what happens where an operation cannot give the same numbers every time."""

from collections.abc import Iterator

import pytest
import torch
from rank_threads import side_by_side
from torch import Tensor

from grouper.ranks import ALONE, Ranks
from grouper.refinement.courses import ByPart, Drawn
from grouper.refinement.descent import Descent, _exactly


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def descent(weight: Tensor, loss) -> Descent:
    stream = torch.ones(4, 1, 2)
    order = torch.arange(4).view(4, 1)  # four steps of one window
    return Descent([(weight, 0.5)], [Drawn(loss, stream, stream, order, "cpu")], [0] * 4, "cpu")


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


def adam_by_hand(weight: Tensor, rate: float, given: Tensor, wanted: Tensor, order: Tensor) -> list[float]:
    """Of the mean over a step's windows of |weight * given - wanted|^2; the losses."""
    mean, square, losses = torch.zeros_like(weight), torch.zeros_like(weight), []
    for step, rows in enumerate(order):
        difference = weight * given[rows] - wanted[rows]
        losses.append(difference.square().mean().item())
        gradient = (2 * difference * given[rows]).sum((0, 1)) / difference.numel()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient.square()
        size = (square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
        weight -= rate * (1 - step / len(order)) * mean / (1 - 0.9 ** (step + 1)) / size
    return losses


@pytest.mark.parametrize("windows", [3, 4, 1], ids=lambda n: f"{n} windows a step")
@pytest.mark.parametrize("ranks", [1, 2, 3], ids=lambda n: f"{n} ranks")
def test_ranks_see_every_window_of_a_step_once_and_take_the_step_of_all(ranks, windows):
    """Also where they cannot share alike, or one has nothing to see."""
    generator = torch.Generator().manual_seed(0)
    given, wanted = (torch.randn(6, 5, 3, generator=generator) for _ in range(2))
    order = torch.stack([torch.randperm(6, generator=generator)[:windows] for _ in range(7)])
    expected = torch.ones(3)
    losses = adam_by_hand(expected, 0.2, given, wanted, order)

    def work(of: Ranks) -> tuple[Tensor, Tensor, list[str]]:
        weight, still, told = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True), []
        loss = lambda x, y: (weight * x * still - y).square().mean()  # noqa: E731
        rates = [(weight, 0.2), (still, 0.0)]
        course = Drawn(loss, given, wanted, order, "cpu", of)
        Descent(rates, [course], [0] * 7, "cpu", of).run(lambda step, steps, note: told.append(note))
        return weight.detach(), still.detach(), told

    for weight, still, told in side_by_side(ranks, work) if ranks > 1 else [work(ALONE)]:
        assert torch.allclose(weight, expected, atol=1e-5) and torch.equal(still, torch.ones(3))
        assert [float(note.removeprefix("error ")) for note in told] == pytest.approx(losses, abs=6e-5)


@pytest.mark.parametrize("ranks", [1, 2, 3], ids=lambda n: f"{n} ranks")
def test_a_part_a_step_is_one_ranks_and_all_take_its_step(ranks):
    """Parts of other sizes, each with a mask of its own; every rank computes every so-many-th step."""
    generator, order = torch.Generator().manual_seed(0), torch.tensor([2, 0, 1, 0])
    parts = [torch.randn(n, 3, generator=generator) for n in (4, 1, 2)]
    expected, moments, losses = torch.ones(3), [torch.zeros(3), torch.zeros(3)], []
    for step, number in enumerate(order.tolist()):
        difference = expected * parts[number] - 1
        losses.append(difference.square().mean().item())
        gradient = (2 * difference * parts[number]).sum(0) / difference.numel()
        moments = [0.9 * moments[0] + 0.1 * gradient, 0.95 * moments[1] + 0.05 * gradient.square()]
        size = (moments[1] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
        expected = expected - 0.2 * (1 - step / 4) * moments[0] / (1 - 0.9 ** (step + 1)) / size

    def work(of: Ranks) -> tuple[Tensor, list[int], list[str]]:
        weight, seen, told = torch.ones(3, requires_grad=True), [], []

        def loss(number: int) -> Tensor:
            seen.append(number)
            return (weight * parts[number] - 1).square().mean()

        course = ByPart(loss, order, of)
        assert not course.alike
        Descent([(weight, 0.2)], [course], [0] * 4, "cpu", of).run(lambda step, steps, note: told.append(note))
        return weight.detach(), seen, told

    found = side_by_side(ranks, work) if ranks > 1 else [work(ALONE)]
    for weight, _, told in found:
        assert torch.allclose(weight, expected, atol=1e-5)
        assert [float(note.removeprefix("error ")) for note in told] == pytest.approx(losses, abs=6e-5)
    assert [seen for _, seen, _ in found] == [order[rank::ranks].tolist() for rank in range(ranks)]
