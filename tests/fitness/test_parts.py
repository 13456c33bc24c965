"""What of a layer's error is K's."""

import numpy as np
import pytest
import torch
from random_layers import small_attention

from fitness import FITNESSES
from grouper.calibration.input_moments import MeasuredInputs

LABELS = np.array([[0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize("name", ["weight", "activation", "spectral"])
def test_what_is_ks_is_the_whole_less_what_is_vs(name):
    attention = small_attention(3)
    width = attention.q.shape[-1] + 1
    half = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = MeasuredInputs(half @ half.T, 1)
    fitness = FITNESSES[name]
    whole = fitness.tables(attention, inputs)
    k = whole.of_k.errors(LABELS)
    v = fitness.tables(attention, inputs, part="v").errors(LABELS)
    assert np.allclose(k + v, whole.errors(LABELS), atol=1e-12) and k[:3].min() > 0 and k[3] == 0
    assert fitness.tables(attention, inputs, part="v").of_k is None
