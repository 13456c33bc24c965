"""The self-test of large models: what it must not let pass."""

import math

import pytest
import torch

from grouper.export.part_test import difference


def test_the_difference_is_over_the_largest_number_wanted():
    assert difference(torch.tensor([1.0, 4.5]), torch.tensor([1.0, -4.0])) == pytest.approx(8.5 / 4)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(broken):
    assert difference(torch.tensor([broken, 1.0]), torch.tensor([0.0, 1.0])) == math.inf
