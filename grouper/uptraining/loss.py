"""What an uptrained model is asked for: the original's distribution, its hidden states, the text itself."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.utils.checkpoint import checkpoint

from grouper.divergence import kl_divergence
from grouper.uptraining.options import Losses

AT_ONCE = 2**26  # logits that are held in float32 at once: those of 1,024 tokens of a vocabulary of 65,536


def token_losses(
    ours: Tensor, theirs: Tensor | None, tokens: Tensor, losses: Losses, hidden: Sequence[tuple[Tensor, Tensor]] = ()
) -> Tensor:
    """[windows, tokens - 1]: the weighted sum for every position that has a next token.

    ours, theirs: logits [windows, tokens, vocabulary]. tokens: ids. hidden: (ours, theirs) of each layer
    [windows, tokens, D].
    """
    total = ours.new_zeros(tokens[:, 1:].shape, dtype=torch.float32)
    if losses.kl:
        total = total + losses.kl * _in_parts(kl_divergence, ours[:, :-1], theirs[:, :-1])
    if losses.hidden and hidden:
        distances = [1 - cosine_similarity(a[:, :-1].float(), b[:, :-1].float(), dim=-1) for a, b in hidden]
        total = total + losses.hidden * torch.stack(distances).mean(0)
    if losses.causal:
        total = total + losses.causal * _in_parts(_next_token, ours[:, :-1], tokens[:, 1:])
    return total


def _next_token(ours: Tensor, wanted: Tensor) -> Tensor:
    return cross_entropy(ours.float(), wanted, reduction="none")


def _in_parts(loss, ours: Tensor, wanted: Tensor) -> Tensor:
    """loss(ours [n, vocabulary], wanted [n, ...]) -> [n], few tokens at a time where a vocabulary is large: what is
    held for the backward pass is made again then."""
    flat, other = ours.flatten(0, 1), wanted.flatten(0, 1)
    size = max(1, AT_ONCE // ours.shape[-1])
    if len(flat) <= size:
        return loss(flat, other).view(ours.shape[:2])
    parts = [checkpoint(loss, a, b, use_reentrant=False) for a, b in zip(flat.split(size), other.split(size))]
    return torch.cat(parts).view(ours.shape[:2])
