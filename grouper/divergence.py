"""Divergence between two models' distributions of the next token."""

from torch import Tensor
from torch.nn.functional import log_softmax


def kl_divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(theirs || ours) in nats for each token. ours, theirs: logits [..., vocabulary] of any floating type."""
    p, q = log_softmax(theirs.float(), -1), log_softmax(ours.float(), -1)
    return (p.exp() * (p - q)).sum(-1)
