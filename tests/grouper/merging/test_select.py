"""Which head of a group stays."""

import math

import torch

from grouper import Grouping, LayerLayout
from grouper.attention import Attention
from grouper.calibration.input_moments import MeasuredInputs
from grouper.merging.select import Select

ALL_IN_ONE = LayerLayout.from_labels([0, 0, 0])


def three_heads(*vectors: tuple[float, float]) -> Attention:
    """K and V heads of one row each."""
    rows = torch.tensor(vectors).double()[:, None]  # [3, 1, 2]
    return Attention(torch.ones(3, 1, 2).double(), rows, rows.clone(), torch.ones(2, 3, 1).double())


def at(degrees: float, size: float) -> tuple[float, float]:
    return size * math.cos(math.radians(degrees)), size * math.sin(math.radians(degrees))


def test_the_nearest_by_direction_stays_not_the_weakest():
    """1 - cosine, summed: 1.83, 3.15 and 2.64. Squared distances, summed: 334, 337 and 201."""
    attention = three_heads(at(0, 10), at(100, 10), at(-70, 0.1))
    merged = Select().merge(attention, ALL_IN_ONE)
    assert torch.equal(merged.k, attention.k[:1]) and torch.equal(merged.v, attention.v[:1])
    assert torch.equal(Select(first=True).merge(attention, LayerLayout.from_labels([0, 1, 1])).k, attention.k[:2])


def test_text_decides_what_is_near():
    """By weights the second head lies between the others; on text that has the first component alone, the first two
    point one way and the third the other way, so that the first of the two stays."""
    attention = three_heads(at(0, 1), at(50, 1), at(100, 1))
    assert torch.equal(Select().merge(attention, ALL_IN_ONE).k, attention.k[1:2])
    first_alone = MeasuredInputs(torch.diag(torch.tensor([1.0, 0.0, 1.0])).double(), 1)
    assert torch.equal(Select().merge(attention, ALL_IN_ONE, first_alone).k, attention.k[:1])


def test_k_and_v_choose_for_themselves_where_they_are_grouped_apart():
    attention = three_heads(at(0, 1), at(50, 1), at(100, 1))
    attention.v = attention.v[[1, 0, 2]]
    k, v = Grouping.from_labels([0, 0, 0]), Grouping(((0, 1), (2,)), ((0, 1, 2), (2,)))
    merged = Select().merge(attention, LayerLayout(k, v))
    assert torch.equal(merged.k, attention.k[1:2]) and torch.equal(merged.v, attention.v[[0, 2]])


def of_directions(k: list[float], v: list[float]) -> Attention:
    """One row a head, in these directions."""
    k, v = (torch.tensor([at(degrees, 1.0) for degrees in heads]).double()[:, None] for heads in (k, v))
    return Attention(torch.ones(len(k), 1, 2).double(), k, v, torch.ones(2, len(k), 1).double())


def test_v_has_a_say_in_which_head_stays():
    """By K alone the second head is the medoid; with V, of which it is the stranger, the first."""
    attention = of_directions([0, 30, 80], [90, 0, 90])
    merged = Select().merge(attention, ALL_IN_ONE)
    assert torch.equal(merged.k, attention.k[:1]) and torch.equal(merged.v, attention.v[:1])


def test_the_medoid_has_the_least_sum_of_distances_not_the_least_largest_one():
    directions = [0, 0, 0, 100, 60]
    attention = of_directions(directions, directions)
    assert torch.equal(Select().merge(attention, LayerLayout.from_labels([0] * 5)).k, attention.k[:1])
