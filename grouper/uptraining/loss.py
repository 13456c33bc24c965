"""Losses of uptraining: distance to the original's distribution, distance to its hidden states, right answers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.utils.checkpoint import checkpoint

from grouper.divergence import kl_divergence
from grouper.errors import GrouperError
from grouper.running.answers import pooled
from grouper.running.batch import NOT_ASKED
from grouper.uptraining.options import Losses

AT_ONCE = 2**26  # logits held in float32 at once: 1,024 tokens of a vocabulary of 65,536


def losses_of(
    ours: Tensor | None, theirs: Tensor | None, right: Tensor | None, losses: Losses, apart: Tensor | None = None
) -> Tensor:
    """Weighted sum of losses for every answer [n, places].

    ours, theirs: logits [n, places, classes]; None for a model without a head, which has only hidden states. right:
    right answers [n, places], NOT_ASKED where unknown. apart: `distance` of hidden states [n, places], or [n, 1] if it
    applies to all answers of an example.
    """
    terms = []
    if losses.kl and ours is not None and theirs is not None:
        terms.append(losses.kl * _in_parts(kl_divergence, ours, theirs))
    if losses.hidden and apart is not None:
        terms.append(losses.hidden * apart)
    if losses.causal and ours is not None and right is not None:
        terms.append(losses.causal * _in_parts(_right_one, ours, right))
    if not terms:
        why = "a model without a head learns hidden states alone (`hidden`)"
        if ours is not None:
            why = "the right answers of this text are not known: learn the original's (`kl`, `hidden`)"
        raise GrouperError(f"nothing to learn: {why}")
    return sum(terms[1:], terms[0])


def distance(hidden: Sequence[tuple[Tensor, Tensor, Tensor | None]], windows: bool) -> Tensor | None:
    """One minus the cosine of both models' hidden states, mean over layers. hidden: per layer (ours, theirs) after the
    layer [n, tokens, D], and True at non-padding positions [n, tokens]. Returns [n, tokens - 1] for windows, because
    their last token has no answer; otherwise [n, 1], the mean over tokens; None if there are no layers."""
    found = []
    for ours, theirs, mask in hidden:
        a, b = (ours[:, :-1], theirs[:, :-1]) if windows else (ours, theirs)
        each = 1 - cosine_similarity(a.float(), b.float(), dim=-1)
        found.append(each if windows else pooled(each[..., None], mask))
    return torch.stack(found).mean(0) if found else None


def _right_one(ours: Tensor, wanted: Tensor) -> Tensor:
    return cross_entropy(ours.float(), wanted, ignore_index=NOT_ASKED, reduction="none")


def _in_parts(loss: Callable[[Tensor, Tensor], Tensor], ours: Tensor, wanted: Tensor) -> Tensor:
    """Loss per token [n] from ours [n, vocabulary] and wanted [n, ...], computed for a few tokens at a time if the
    vocabulary is large. Intermediate values are recomputed in the backward pass."""
    flat, other = ours.flatten(0, 1), wanted.flatten(0, 1)
    size = max(1, AT_ONCE // ours.shape[-1])
    if len(flat) <= size:
        return loss(flat, other).view(ours.shape[:2])
    parts = [checkpoint(loss, a, b, use_reentrant=False) for a, b in zip(flat.split(size), other.split(size))]
    return torch.cat(parts).view(ours.shape[:2])
