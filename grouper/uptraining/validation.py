"""Validation of a model in training, on text that it does not learn from."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from grouper.divergence import kl_divergence
from grouper.ranks import Ranks
from grouper.running.answers import targets_of
from grouper.running.batch import NOT_ASKED, Batch
from grouper.uptraining.options import Losses
from grouper.uptraining.teacher import Answers, Teacher
from grouper.uptraining.text import TrainingText


@dataclass(frozen=True)
class Score:
    """Means over answers. nll: nats. kl: nats of KL divergence from the original. agreement: share of answers with the
    same likeliest one in both models. teacher_nll: the original's nats. cosine: cosine of both models' vectors, mean
    over examples, if they have no head. Unknown values are NaN: all but the first without a teacher, nats if no right
    answers are known."""

    nll: float = math.nan
    kl: float = math.nan
    agreement: float = math.nan
    teacher_nll: float = math.nan
    cosine: float = math.nan

    def judged(self, losses: Losses) -> float:
        """Value to minimise."""
        if not math.isnan(self.cosine):
            return 1 - self.cosine
        return self.kl if losses.needs_teacher else self.nll


@torch.no_grad()
def score_of(
    answers_of: Callable[[Batch], Answers],
    teacher: Teacher | None,
    held_out: TrainingText,
    micro: int,
    device: torch.device,
    ranks: Ranks,
) -> Score:
    """Score of the student on held-out text. answers_of(batch): the student's answers, on the device. micro: examples
    per pass. Ranks share the examples."""
    sums: dict[str, Tensor] = {}
    mine, real = share(len(held_out), ranks)
    if teacher is not None and not teacher.knows(held_out.batch[mine]):
        teacher.prepare(held_out.batch[mine])
    for rows, own in zip(mine.split(micro), real.split(micro)):
        some = held_out.rows(rows)
        ours = answers_of(some.batch)
        theirs = None if teacher is None else teacher.answers(some.batch, False, device)
        for name, (values, counted) in _measured(ours, theirs, some).items():
            weights = counted.to(device) * own[:, None].to(device)
            added = torch.stack([(values * weights).double().sum(), weights.double().sum()]).cpu()
            sums[name] = sums[name] + added if name in sums else added
    names = sorted(sums)
    first, *others = ranks.gather(torch.stack([sums[name] for name in names]))
    total = sum(others, first)
    return Score(**{name: (value / count).item() for name, (value, count) in zip(names, total)})


def _measured(ours: Answers, theirs: Answers | None, some: TrainingText) -> dict[str, tuple[Tensor, Tensor]]:
    """Values and which of them count, [n, places] each."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    right, wanted, vectors = targets_of(some.batch), None, None
    if theirs is not None:
        wanted, vectors = theirs.logits, theirs.vectors
    if ours.vectors is not None and vectors is not None:
        each = cosine_similarity(ours.vectors.float(), vectors.float(), dim=-1)[:, None]
        found["cosine"] = each, torch.ones_like(each)
    if ours.logits is not None and wanted is not None:
        found["kl"] = kl_divergence(ours.logits, wanted), some.weights
        found["agreement"] = ours.logits.argmax(-1) == wanted.argmax(-1), some.weights
    for name, logits in (("nll", ours.logits), ("teacher_nll", wanted)):
        if logits is not None and right is not None:
            found[name] = _nll(logits, right), some.weights * (right != NOT_ASKED)
    return found


def _nll(logits: Tensor, right: Tensor) -> Tensor:
    """Negative log-likelihood in nats [n, places]."""
    wanted = right.to(logits.device).flatten()
    losses = cross_entropy(logits.float().flatten(0, 1), wanted, ignore_index=NOT_ASKED, reduction="none")
    return losses.view(logits.shape[:2])


def share(count: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Rows of this rank, and for each whether it counts. Every rank gets the same number of rows, some of them
    repeated, because all ranks must call a sharded model together."""
    each = -(-count // ranks.size)
    places = ranks.rank * each + torch.arange(each)
    return places.clamp_max(count - 1), places < count
