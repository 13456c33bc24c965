"""What goes into an exported folder is looked at on its way."""

import pytest
import torch

from grouper import Checkpoint, GrouperError
from grouper.checkpoint.shards import stored
from grouper.export.hf.tensors import finite


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(wrong):
    tensor = torch.zeros(3, 4)
    tensor[1, 2] = wrong
    with pytest.raises(GrouperError, match=r"NaN or infinity in k_proj\.weight"):
        finite(("k_proj.weight", tensor))


def test_others_pass_as_they_are():
    largest = torch.tensor([torch.finfo(torch.float32).max, -1.0])
    copied = stored(Checkpoint.open("demo"), "model.norm.weight")
    for tensor in (largest, torch.zeros(0, 3), copied):
        assert finite(("a", tensor))[1] is tensor
