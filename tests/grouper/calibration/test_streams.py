"""How a residual stream is begun, kept and passed on; moments by several ranks."""

import pytest
import torch
from rank_threads import side_by_side
from torch import nn

from grouper import Checkpoint
from grouper.calibration import streams
from grouper.calibration.moments import collect_moments
from grouper.calibration.streams import first_inputs, moved, room, run_layer
from grouper.model.in_memory import InMemoryModel
from grouper.ranks import Ranks


class Biased(nn.Module):
    """Adds its heads' biases of positions to a stream, as BLOOM takes them: [windows * H, 1, tokens]."""

    def forward(self, stream, alibi, twice=False):
        heads = alibi.view(len(stream), -1, stream.shape[1])  # [windows, H, tokens]
        assert heads.shape[1] == 3
        weighted = heads * torch.tensor([1.0, 10.0, 100.0])[:, None]
        return (stream + weighted.sum(1)[..., None] * (2 if twice else 1), "more")


def test_every_window_gets_each_heads_own_biases():
    """Of three heads, two tokens: heads are in the order in which one window has them, window after window."""
    alibi = torch.tensor([[[0.0, 1.0]], [[0.0, 2.0]], [[0.0, 3.0]]])
    stream = torch.zeros(4, 2, 1)
    found = run_layer(Biased(), stream, ((), {"alibi": alibi}))
    assert found[:, :, 0].tolist() == [[0.0, 321.0]] * 4
    assert run_layer(Biased(), stream, ((), {"alibi": alibi, "twice": True}))[0, 1, 0] == 642
    assert run_layer(Biased(), stream[:1], ((alibi,), {})).shape == (1, 2, 1)


def test_more_windows_than_are_embedded_at_once_enter_in_their_order(reader):
    model = InMemoryModel(Checkpoint.open(reader))
    windows = torch.randint(0, 4096, (70, 3), generator=torch.Generator().manual_seed(0))
    stream, arguments = first_inputs(model, windows, "cpu")
    assert torch.equal(stream, model.model.get_input_embeddings()(windows)) and len(arguments) == 3


def test_where_streams_are_kept(monkeypatch):
    """In memory where a third of what is free is enough, else in a file."""
    free, files = [0.0], []
    monkeypatch.setattr(streams, "free_memory", lambda: free[0])
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *a, **k: files.append(a) or from_file(*a, **k))
    for free[0], filed in ((3 * 4 * 24 + 1, 0), (3 * 4 * 24, 1)):
        kept = room((2, 3, 4), "cpu")
        assert kept.shape == (2, 3, 4) and kept.dtype == torch.float32 and len(files) == filed
        kept.copy_(torch.ones(2, 3, 4))
        assert kept.sum() == 24


def test_arguments_of_any_shape_are_moved():
    one = torch.ones(2)
    found = moved(((one, 3), [one, None], "a"), "meta")
    assert found[0][0].is_meta and found[0][1] == 3 and found[1][0].is_meta and found[1][1] is None and found[2] == "a"


@pytest.mark.parametrize(("size", "windows"), [(2, 5), (3, 2)])
def test_ranks_collect_what_one_collects(reader, monkeypatch, size, windows):
    """Batches of two windows, shared out; sums and keys of all, keys in the text's order; a rank without any."""
    monkeypatch.setattr("grouper.calibration.moments.BATCH_TOKENS", 16)
    tokens = torch.randint(0, 4096, (windows, 8), generator=torch.Generator().manual_seed(0))
    models = [InMemoryModel(Checkpoint.open(reader)) for _ in range(size + 1)]
    wanted = list(collect_moments(models[size], tokens))

    def work(ranks: Ranks):
        return list(collect_moments(models[ranks.rank], tokens, ranks=ranks))

    for found in side_by_side(size, work):
        for ours, alone in zip(found, wanted, strict=True):
            assert ours.tokens == windows * 8 and torch.allclose(ours.keys, alone.keys, rtol=1e-4, atol=1e-4)
            assert torch.allclose(ours.second_moment, alone.second_moment, rtol=1e-5, atol=1e-6)
