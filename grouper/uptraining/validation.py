"""What a model in training is worth on text that it does not learn from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from grouper.divergence import kl_divergence
from grouper.ranks import Ranks
from grouper.uptraining.options import Losses
from grouper.uptraining.teacher import Teacher
from grouper.uptraining.text import Examples


@dataclass(frozen=True)
class Score:
    """Means over tokens: nats; nats of KL from the original; share of tokens where both think the same one likeliest;
    the original's nats. All but the first are NaN without a teacher."""

    nll: float
    kl: float = float("nan")
    agreement: float = float("nan")
    teacher_nll: float = float("nan")

    def judged(self, losses: Losses) -> float:
        """The smaller the better."""
        return self.kl if losses.needs_teacher else self.nll


@torch.no_grad()
def score_of(
    logits_of: Callable[[Tensor], Tensor],
    teacher: Teacher | None,
    held_out: Examples,
    micro_windows: int,
    device: torch.device,
    ranks: Ranks,
) -> Score:
    """logits_of(tokens [windows, window]) on the device. Ranks share the windows."""
    sums = torch.zeros(1 if teacher is None else 4, dtype=torch.float64)
    mine, real = share(len(held_out), ranks)
    if teacher is not None and not teacher.knows(held_out.tokens[mine]):
        teacher.prepare(held_out.tokens[mine])
    for rows, own in zip(mine.split(micro_windows), real.split(micro_windows)):
        tokens = held_out.tokens[rows].to(device)
        counted = (held_out.counted[rows][:, 1:] * own[:, None]).to(device)
        ours = logits_of(tokens)[:, :-1]
        values = [_nll(ours, tokens)]
        if teacher is not None:
            theirs = teacher.logits_and_hidden(tokens, False)[0][:, :-1]
            values += [kl_divergence(ours, theirs), ours.argmax(-1) == theirs.argmax(-1), _nll(theirs, tokens)]
        sums += torch.stack([(value * counted).double().sum().cpu() for value in values])
    counted = int(held_out.counted[:, 1:].sum())
    return Score(*(sum(ranks.gather(sums)) / counted).tolist())


def _nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """[windows, tokens - 1]"""
    losses = cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(logits.shape[:2])


def share(count: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """(this rank's rows, whether each is no repetition): as many on every rank, for sharded models are asked by all of
    them at once."""
    each = -(-count // ranks.size)
    places = ranks.rank * each + torch.arange(each)
    return places.clamp_max(count - 1), places < count
