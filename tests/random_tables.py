"""Random tables of pairs, and tasks made of them."""

import numpy as np
import pytest
import torch
from random_layers import small_attention

from fitness import FITNESSES, PairwiseFitness
from grouper.calibration.input_moments import MeasuredInputs
from search.methods.task import LayerTask
from search.optimise.partition import Partition


def random_pairs(seed: int, heads: int, width: int = 200) -> PairwiseFitness:
    """As random weights give: nearly orthogonal heads, so that the landscape has no slope to follow."""
    rows = np.random.default_rng(seed).normal(size=(heads, width))
    return PairwiseFitness.from_gram(rows @ rows.T)


def errors(partitions: list[Partition]) -> dict[int, float]:
    return {p.groups: p.error for p in partitions}


def same_groups(labels, others) -> bool:
    labels, others = np.asarray(labels), np.asarray(others)
    return bool(((labels[:, None] == labels) == (others[:, None] == others)).all())


def task_of(tables: PairwiseFitness) -> LayerTask:
    """For methods that need nothing but the fitness."""
    return LayerTask(FITNESSES["weight"], tables, lambda: pytest.fail("this method asks for weights"))


def keyed_task(heads: int = 8, keys: np.ndarray | None = None) -> LayerTask:
    """For methods that go by keys: [windows, heads, heads] inner products, two random windows unless given."""
    a = small_attention(0, heads, bias=False)
    gram = torch.einsum("adx,bdx->ab", a.k, a.k)
    keys = torch.stack([gram, 2 * gram]) if keys is None else torch.tensor(keys)
    inputs = MeasuredInputs(torch.eye(13, dtype=torch.float64), 8, keys)
    return LayerTask(FITNESSES["weight"], None, lambda: (a, inputs))
