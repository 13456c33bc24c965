"""Nats per token by hand."""

from types import SimpleNamespace

import pytest
import torch

from grouper.evaluation import perplexity

LOGITS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[0, 1, 2, 3], [1, 1, 1, 1], [2, 4, 0, 4]])


class Stub(torch.nn.Module):
    """Knows three windows."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache):
        known = TOKENS.tolist()
        return SimpleNamespace(logits=torch.stack([LOGITS[known.index(row)] for row in input_ids.tolist()]))


def test_every_token_weighs_the_same_however_batches_fall(monkeypatch):
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", (8, 8))  # two windows, then one
    wanted = -torch.log_softmax(LOGITS[:, :-1], -1).gather(2, TOKENS[:, 1:, None]).mean().item()
    assert perplexity.nll(Stub(), TOKENS) == pytest.approx(wanted, rel=1e-6)
