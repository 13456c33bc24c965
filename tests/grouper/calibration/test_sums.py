"""Sums over examples, by hand and by several ranks."""

import threading
from types import SimpleNamespace

import pytest
import torch
from encoder_samples import examples
from rank_threads import side_by_side
from torch import nn

from grouper import Checkpoint, GrouperError
from grouper.calibration.moments import _hooks, _product, _Sums, collect_moments
from grouper.ranks import ALONE, Ranks
from grouper.running.batch import NOT_ASKED, Batch, padded
from grouper.running.in_memory import InMemoryModel

READ = torch.tensor([[True, True, True], [True, False, False]])
LABELS = torch.tensor([[5, 6], [7, NOT_ASKED]])
EXAMPLES = Batch({"input_ids": READ.long(), "attention_mask": READ.long()}, LABELS, 5)


def rows(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Those that are no filling, with a 1 appended; summed products."""
    one = torch.cat([x[mask], torch.ones(int(mask.sum()), 1)], 1)
    return one.T @ one


def test_products_leave_filling_out():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(_product(x, READ), rows(x, READ))
    assert torch.allclose(_product(x, None), rows(x, torch.ones(2, 3, dtype=torch.bool)))


@pytest.mark.parametrize("cache", ["none", "token", "source"])
def test_keys_and_queries_are_of_what_each_reads(cache):
    """An encoder's of the source; a decoder's own of what it writes; across, K and V of the source, q of what is
    written."""
    k_proj, q_proj = nn.Linear(4, 6), nn.Linear(4, 6)
    model = SimpleNamespace(
        architecture=SimpleNamespace(key_outputs=lambda output: output.unflatten(-1, (3, 2)).permute(0, 2, 3, 1)),
        key_projection=lambda layer: k_proj, query_projection=lambda layer: q_proj,
    )  # fmt: skip
    seen, site = threading.local(), SimpleNamespace(index=0, cache=cache, stack=int(cache != "none"))
    seen.part, seen.found = EXAMPLES, [{}]
    _hooks(model, site, 0, seen)
    read, written = torch.randn(2, 3, 4), torch.randn(2, 2, 4)
    of_keys, mask = (written, LABELS != NOT_ASKED) if cache == "token" else (read, READ)
    keys = k_proj(of_keys).detach()
    q_proj(written)
    found = seen.found[0]
    assert torch.allclose(found["inputs"], rows(of_keys, mask), atol=1e-5)
    wanted = torch.zeros(2, 3, 3)
    for example in range(2):
        for token in torch.arange(len(mask[0]))[mask[example]]:
            heads = keys[example, token].view(3, 2)
            wanted[example] += heads @ heads.T
    assert torch.allclose(found["keys"], wanted, atol=1e-5)
    if cache == "source":
        assert torch.allclose(found["queries"], rows(written, LABELS != NOT_ASKED), atol=1e-5)
    else:
        assert "queries" not in found


MODEL = SimpleNamespace(architecture=SimpleNamespace(hidden_size=4), device="cpu")
OWN, ACROSS = (SimpleNamespace(name="decoder 1", cache=cache) for cache in ("token", "source"))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_moments_are_over_the_tokens_of_all_ranks(size):
    """Six parts; the sums' last entry is the number of tokens."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 4, generator=generator) for n in (3, 1, 4, 1, 5, 9)]
    others = [torch.randn(n, 4, generator=generator) for n in (2, 7, 1, 8, 2, 8)]
    keys = [torch.randn(1, 2, 2, generator=generator) for _ in range(6)]
    all_of = lambda tensors: torch.cat([torch.cat(tensors), torch.ones(sum(map(len, tensors)), 1)], 1)  # noqa: E731

    def work(ranks: Ranks):
        across, own = _Sums(ACROSS, MODEL), _Sums(OWN, MODEL)
        for i in ranks.portion(range(6)):
            whole = {"inputs": _product(parts[i], None), "keys": keys[i], "queries": _product(others[i], None)}
            across.add(whole), own.add({n: t for n, t in whole.items() if n != "queries"})
        return across.moments(ranks), own.moments(ranks)

    for across, own in side_by_side(size, work) if size > 1 else [work(ALONE)]:
        for moments, tensors, tokens in ((across, parts, 23), (own, parts, 23), (across.queries, others, 28)):
            x = all_of(tensors).double()
            assert moments.tokens == tokens and torch.allclose(moments.second_moment, x.T @ x / tokens, atol=1e-5)
        assert own.queries is None and torch.equal(across.keys, torch.cat(keys)) and torch.equal(own.keys, across.keys)


@pytest.mark.parametrize("name", ["inputs", "queries"])
def test_what_is_not_finite_is_said(name):
    sums = _Sums(ACROSS, MODEL)
    found = {"inputs": torch.eye(5), "queries": torch.eye(5), "keys": torch.zeros(1, 1, 1)}
    sums.add({**found, name: torch.full((5, 5), float("nan"))})
    with pytest.raises(GrouperError, match="what enters decoder 1 is not finite: weights before it are damaged"):
        sums.moments(ALONE)


@pytest.mark.parametrize("name", ["bert", "vit", "t5"])
def test_ranks_collect_of_examples_what_one_collects(encoders, monkeypatch, name):
    """Seven examples in parts of two, shared out; each is seen once, and all ranks get the whole."""
    folder = encoders(name)
    some = examples(folder, 7)
    monkeypatch.setattr("grouper.calibration.moments.BATCH_TOKENS", 2 * some.tokens)
    models = [InMemoryModel(Checkpoint.open(folder)) for _ in range(3)]
    wanted, told = list(collect_moments(models[2], some)), []

    def work(ranks: Ranks):
        progress = (lambda *given: told.append(given)) if ranks.first else (lambda *_: None)
        return list(collect_moments(models[ranks.rank], some, progress, ranks))

    for found in side_by_side(2, work):
        for ours, alone in zip(found, wanted, strict=True):
            assert ours.tokens == alone.tokens and torch.allclose(ours.keys, alone.keys, rtol=1e-4, atol=1e-4)
            assert torch.allclose(ours.second_moment, alone.second_moment, rtol=1e-4, atol=1e-5)
            assert (ours.queries is None) == (alone.queries is None)
    a = models[2].architecture
    ends = [place[-1].index + 1 for place in a.places]
    assert told == [(end, a.layers, f"calibrating, {place[0].name}") for end, place in zip(ends, a.places)]


def test_examples_by_hand():
    assert padded([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert EXAMPLES.shape == (2, 5) and EXAMPLES.numel() == 10 and len(EXAMPLES[1:]) == 1
    assert EXAMPLES[[1]].labels.tolist() == [[7, NOT_ASKED]] and torch.equal(EXAMPLES[[1]].read, READ[1:])
    assert torch.equal(EXAMPLES.written, torch.tensor([[True, True], [True, False]]))
    assert Batch({"pixel_values": torch.zeros(2, 3)}).read is None
    given = Batch({"pixel_values": torch.zeros(2, 3)}, torch.tensor([1, 2])).called_with("cpu", torch.float64, True)
    assert given["pixel_values"].dtype == torch.float64 and given["labels"].tolist() == [1, 2]
    given = EXAMPLES.called_with("cpu", torch.float64, False)
    assert given.keys() == {"input_ids", "attention_mask"} and given["input_ids"].dtype == torch.int64
    others = [EXAMPLES[[1, 0]], Batch(EXAMPLES.inputs), Batch({"input_ids": READ.long()}, LABELS)]
    assert len({e.digest for e in (EXAMPLES, *others)}) == 4 and EXAMPLES.digest == EXAMPLES[[0, 1]].digest
