"""Losses by hand."""

import math

import pytest
import torch

from grouper import GrouperError
from grouper.divergence import kl_divergence
from grouper.running.answers import targets_of
from grouper.running.batch import Batch
from grouper.uptraining import loss
from grouper.uptraining.loss import distance, losses_of
from grouper.uptraining.options import Losses

GENERATOR = torch.Generator().manual_seed(0)
OURS, THEIRS = (torch.randn(2, 5, 7, generator=GENERATOR)[:, :-1] for _ in range(2))
TOKENS = torch.randint(0, 7, (2, 5), generator=GENERATOR)
RIGHT = targets_of(Batch.of(TOKENS))


def test_kl_of_two_coins():
    """A fair coin taught by one that falls on heads three times of four: 0.75 ln 1.5 + 0.25 ln 0.5."""
    ours, theirs = torch.tensor([0.0, 0.0]), torch.tensor([math.log(3.0), 0.0])
    assert kl_divergence(ours, theirs).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl_divergence(theirs, theirs + 5).item() == pytest.approx(0, abs=1e-7)


def test_each_loss_is_of_the_position_before_the_token():
    kl = losses_of(OURS, THEIRS, RIGHT, Losses(1, 0, 0))
    assert kl.shape == (2, 4)
    p, q = THEIRS[1, 2].softmax(-1), OURS[1, 2].softmax(-1)
    assert kl[1, 2].item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    causal = losses_of(OURS, None, RIGHT, Losses(0, 0, 1))
    assert causal[1, 2].item() == pytest.approx(-q.log()[TOKENS[1, 3]].item(), rel=1e-5)


def test_hidden_states_by_their_angle_and_the_sum_is_weighted():
    one, other = torch.tensor([[[1.0, 0.0]] * 5] * 2), torch.tensor([[[3.0, 3.0]] * 5] * 2)
    apart = distance([(one, other, None), (one, one, None)], windows=True)
    hidden = losses_of(OURS, THEIRS, RIGHT, Losses(0, 2, 0), apart)
    assert torch.allclose(hidden, torch.full((2, 4), 2 * (1 - math.sqrt(0.5)) / 2)), "the mean over two layers, twice"
    both = losses_of(OURS, THEIRS, RIGHT, Losses(1, 2, 3), apart)
    parts = losses_of(OURS, THEIRS, RIGHT, Losses(1, 0, 0)) + 3 * losses_of(OURS, None, RIGHT, Losses(0, 0, 1))
    assert torch.allclose(both, hidden + parts)


def test_few_tokens_at_a_time_give_the_same_loss_and_gradient(monkeypatch):
    found = []
    for at_once in (10**9, 21):  # all, three tokens
        monkeypatch.setattr(loss, "AT_ONCE", at_once)
        ours = OURS.clone().requires_grad_()
        total = losses_of(ours, THEIRS, RIGHT, Losses(1, 0, 1)).square().sum()
        total.backward()
        found.append((total.item(), ours.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 0), (1, 0, -0.5)])
def test_weights_that_make_no_loss_are_refused(weights):
    with pytest.raises(GrouperError, match="loss weights"):
        Losses(*weights)


def test_hidden_states_count_where_a_token_follows():
    """Behind the last token of a window nothing is learnt: its states, which differ, do not count."""
    one = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    other = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    found = losses_of(torch.zeros(1, 2, 7), None, RIGHT[:1, :2], Losses(0, 1, 0), distance([(one, other, None)], True))
    assert torch.allclose(found, torch.tensor([[0.0, 1.0]]), atol=1e-6)


def test_what_is_learnt_by_default():
    assert Losses() == Losses(kl=1.0, hidden=1.0, causal=0.0)
    assert [Losses(*weights).needs_teacher for weights in ((1, 0, 1), (0, 1, 0), (0, 0, 1))] == [True, True, False]


def test_nothing_to_learn_is_said_with_its_reason():
    logits = torch.zeros(1, 2, 3)
    with pytest.raises(GrouperError, match=r"the right answers of this text are not known: .*\(`kl`, `hidden`\)"):
        losses_of(logits, None, None, Losses(0, 0, 1))
    with pytest.raises(GrouperError, match=r"a model without a head learns hidden states alone \(`hidden`\)"):
        losses_of(None, None, None, Losses(1, 0, 1))
