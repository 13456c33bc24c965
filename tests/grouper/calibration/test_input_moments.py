"""What is known of a layer's inputs."""

import pytest
import torch

from grouper.calibration.input_moments import AssumedInputs, MeasuredInputs

GAIN, BIAS = torch.tensor([2.0, 0.5]), torch.tensor([3.0, -1.0])


def test_a_norms_bias_is_the_same_for_all_tokens_and_goes_with_the_mean():
    """diag(4, 1/4), and the mean (3, -1) beside the constant 1; without their mean, the constant is nothing, too."""
    inputs = AssumedInputs.from_norm(GAIN, BIAS, 2)
    assert inputs.second_moment.tolist() == [[13.0, -3.0, 3.0], [-3.0, 1.25, -1.0], [3.0, -1.0, 1.0]]
    wanted = torch.diag(torch.tensor([4.0, 0.25, 0.0], dtype=torch.float64))
    assert torch.equal(inputs.centred().second_moment, wanted)
    weights = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert inputs.centred().times(weights).tolist() == [[4.0, 0.5, 0.0]]
    assert inputs.times(weights).tolist() == (weights @ inputs.second_moment).tolist()
    written_out = MeasuredInputs(inputs.second_moment, 7)
    assert torch.allclose(written_out.centred().second_moment, wanted) and written_out.centred().tokens == 7


def test_across_queries_have_moments_of_their_own():
    queries = AssumedInputs.from_norm(GAIN, None, 2)
    across, own = AssumedInputs.from_norm(None, BIAS, 2, queries), AssumedInputs.from_norm(GAIN, BIAS, 2)
    assert across.of_queries is queries and own.of_queries is own
    moved = across.to("cpu")
    assert torch.equal(moved.second_moment, across.second_moment)
    assert torch.equal(moved.of_queries.second_moment, queries.second_moment)
    text = MeasuredInputs(torch.eye(3), 5, queries=MeasuredInputs(2 * torch.eye(3), 4)).to("cpu")
    assert text.second_moment.dtype == text.of_queries.second_moment.dtype == torch.float64
    assert text.of_queries.second_moment[0, 0] == 2


def test_moments_without_keys_are_kept_too(tmp_path):
    inputs = MeasuredInputs(torch.rand(4, 4).float().double(), 7)
    inputs.save(tmp_path / "file")
    again = MeasuredInputs.load(tmp_path / "file")
    assert again.keys is None and again.tokens == 7 and torch.equal(again.second_moment, inputs.second_moment)


@pytest.mark.parametrize("across", [True, False])
def test_what_is_kept_is_read_as_it_was(tmp_path, across):
    keys = torch.rand(2, 3, 3)
    queries = MeasuredInputs(torch.rand(4, 4).double(), 11) if across else None
    inputs = MeasuredInputs(torch.rand(4, 4).double(), 7, keys, queries)
    inputs.save(tmp_path / "file")
    again = MeasuredInputs.load(tmp_path / "file")
    assert (again.tokens, again.of_queries.tokens) == (7, 11 if across else 7)
    assert torch.equal(again.second_moment, inputs.second_moment) and torch.equal(again.keys, keys)
    assert torch.equal(again.of_queries.second_moment, inputs.of_queries.second_moment)
    assert (again.queries is None) != across
