"""Scores of a model in training, by hand, alone and shared by ranks."""

import math

import pytest
import torch
from rank_threads import side_by_side
from toy_training import Toy, toy_teacher

from grouper.ranks import ALONE, Ranks
from grouper.running.batch import Batch
from grouper.uptraining.options import Losses
from grouper.uptraining.teacher import Answers
from grouper.uptraining.text import TrainingText
from grouper.uptraining.uptrain import told
from grouper.uptraining.validation import Score, score_of, share

GENERATOR = torch.Generator().manual_seed(2)
TOKENS = torch.randint(0, 7, (5, 6), generator=GENERATOR)
COUNTED = torch.rand(5, 6, generator=GENERATOR) < 0.5
COUNTED[:, 0] = True  # which nothing comes before
HELD = TrainingText(Batch.of(TOKENS), COUNTED)


def score(ranks: Ranks = ALONE, teacher: bool = True, micro: int = 2) -> Score:
    model = Toy(0)
    taught = toy_teacher() if teacher else None

    def answers_of(batch: Batch) -> Answers:
        return Answers(model(batch.windows).logits[:, :-1], [], None)

    return score_of(answers_of, taught, HELD, micro, torch.device("cpu"), ranks)


def by_hand() -> list[float]:
    """Nats, KL from the teacher, share of the same likeliest token and the teacher's nats, token by token."""
    ours, theirs = (Toy(seed)(TOKENS).logits.double().softmax(-1) for seed in (0, 1))
    found = []
    for window in range(5):
        for place in range(5):
            if COUNTED[window, place + 1]:
                p, q, following = theirs[window, place], ours[window, place], TOKENS[window, place + 1]
                kl = float((p * (p / q).log()).sum())
                same = float(p.argmax() == q.argmax())
                found.append((-math.log(q[following]), kl, same, -math.log(p[following])))
    return torch.tensor(found).mean(0).tolist()


def test_scores_are_means_over_the_tokens_that_count():
    found = score()
    assert [found.nll, found.kl, found.agreement, found.teacher_nll] == pytest.approx(by_hand(), rel=1e-5)
    bare = score(teacher=False)
    assert bare.nll == pytest.approx(found.nll) and all(map(math.isnan, (bare.kl, bare.agreement, bare.teacher_nll)))


@pytest.mark.parametrize("size", [2, 3, 4], ids=lambda n: f"{n} ranks")
def test_ranks_share_the_windows_and_have_the_score_of_all(size):
    """Five windows do not divide: some ranks see one again, which does not count twice."""
    for found in side_by_side(size, score):
        assert [found.nll, found.kl, found.agreement, found.teacher_nll] == pytest.approx(by_hand(), rel=1e-5)


def test_as_many_windows_on_every_rank():
    shares = [share(5, Ranks(rank, 4)) for rank in range(4)]
    assert [rows.tolist() for rows, _ in shares] == [[0, 1], [2, 3], [4, 4], [4, 4]]
    assert [real.tolist() for _, real in shares] == [[True] * 2, [True] * 2, [True, False], [False] * 2]


@pytest.mark.parametrize(
    ("losses", "judged"),
    [(Losses(1, 0, 0), 0.25), (Losses(0, 1, 0), 0.25), (Losses(0.1, 0, 5), 0.25), (Losses(0, 0, 1), 2.5)],
    ids=["kl", "hidden", "both", "text alone"],
)
def test_who_learns_from_a_teacher_is_judged_by_the_distance_to_it(losses, judged):
    assert Score(nll=2.5, kl=0.25, agreement=0.9, teacher_nll=2.4).judged(losses) == judged


def test_what_is_told_of_a_score():
    score = Score(nll=2.5, kl=0.25, agreement=0.9, teacher_nll=2.4)
    assert told(score, 8) == (
        "2.5000 nats per token on held-out text, +0.1000 over the original; KL 0.2500, the same likeliest token 90.0% "
        "of the time"
    )
    assert told(Score(nll=2.5), 8) == "2.5000 nats per token on held-out text"
    assert told(Score(nll=2.5), 0).startswith("training made nothing better, so weights stay as they were")
