"""How a residual stream is begun, kept and brought through the layers of every kind of model."""

import pytest
import torch
from encoder_samples import SAMPLES, examples
from rank_threads import side_by_side
from torch import nn

from grouper import Checkpoint
from grouper.calibration.moments import collect_moments
from grouper.ranks import Ranks
from grouper.running import walk as walking
from grouper.running.batch import Batch
from grouper.running.in_memory import InMemoryModel
from grouper.running.streamed import StreamedModel
from grouper.running.stub_layers import moved
from grouper.running.walk import Walk, room, run_layer


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
    walk = Walk(model, windows, 8).start()
    assert torch.equal(walk.stream, model.model.get_input_embeddings()(windows)) and len(walk.arguments) == 3
    assert walk.alike and [len(of_layer) for of_layer in walk.arguments] == [1] * 3, "of one window, for all"


def behind_layers(model: InMemoryModel, batch: Batch) -> list[torch.Tensor]:
    """What transformers gives behind each layer, by hooks on the whole model."""
    found: list[torch.Tensor] = []

    def keep(_module, _inputs, output) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [model.layer(place[0].index).register_forward_hook(keep) for place in model.architecture.places]
    decodes = bool(model.architecture.family.parts)
    with torch.no_grad():
        model.model(**batch.called_with("cpu", torch.float32, decodes))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("size", [2, 100], ids=["by parts", "at once"])
@pytest.mark.parametrize("kind", [InMemoryModel, StreamedModel], ids=["in memory", "streamed"])
@pytest.mark.parametrize("name", SAMPLES)
def test_an_encoder_is_walked_as_its_class_computes(encoders, name, kind, size):
    """Filling included; a decoder reads what its encoder gave, behind its last norm; positions' biases of T5, which its
    first layer makes, reach the others."""
    checkpoint, some = Checkpoint.open(encoders(name)), examples(encoders(name), 5)
    wanted, model = behind_layers(InMemoryModel(checkpoint), some), kind(checkpoint)
    walk = Walk(model, some, size)
    for step, behind in zip(walk, wanted, strict=True):
        read = walk.batch.written if step.sites[0].stack else some.read
        assert (walk.mask is None and read is None) or torch.equal(walk.mask, read)
        with step.loaded() as module:
            step.advance(module)
        assert torch.allclose(walk.stream, behind, rtol=1e-4, atol=1e-5)
    names = [site.name for step in Walk(model, some, size) for site in step.sites]
    assert names == [model.architecture.name_of(i) for i in range(model.architecture.layers)]


def test_a_copy_of_a_walk_goes_its_own_way(encoders):
    """Into the decoder, too: each reads what its own encoder gave."""
    model, some = InMemoryModel(Checkpoint.open(encoders("t5"))), examples(encoders("t5"), 4)
    one = Walk(model, some, 2).start()
    other = one.copy()
    entered = one.stream.clone()
    for place in model.architecture.places[:2]:
        for walk, factor in ((one, 1.0), (other, 1.5)):
            step = walk.at(place)
            with step.loaded() as module:
                step.advance(module)
            walk.stream *= factor
    assert not torch.equal(one.stream, entered)
    norm, ends = model.model.get_submodule("encoder.final_layer_norm"), [one.stream.clone(), other.stream.clone()]
    for walk, end in zip((one, other), ends):
        positional, named = walk.at(model.architecture.places[2]).arguments_of(1)
        given = [value for value in (*positional, *named.values()) if torch.is_tensor(value) and value.ndim == 3]
        assert len(given) == 1 and torch.allclose(given[0], norm(end[2:]), atol=1e-6)
    assert not torch.allclose(*ends)
    assert torch.equal(one.stream, other.stream), "what enters the decoder is the target's embeddings in both"


def test_nobodys_examples_are_walked_all_the_same(reader):
    """A rank may have none."""
    model = InMemoryModel(Checkpoint.open(reader))
    walk = Walk(model, torch.zeros(0, 8, dtype=torch.long), 4)
    assert [len(step.walk.parts) for step in walk] == [0] * 3


def test_where_streams_are_kept(monkeypatch):
    """In memory where a third of what is free is enough, else in a file."""
    free, files = [0.0], []
    monkeypatch.setattr(walking, "free_memory", lambda: free[0])
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *a, **k: files.append(a) or from_file(*a, **k))
    for free[0], filed in ((3 * 4 * 24 + 1, 0), (3 * 4 * 24, 1)):
        kept = room((2, 3, 4), "cpu")
        assert kept.shape == (2, 3, 4) and kept.dtype == torch.float32 and len(files) == filed
        kept.copy_(torch.ones(2, 3, 4))
        assert kept.sum() == 24


def test_where_files_cannot_be_mapped_streams_are_kept_in_memory(monkeypatch):
    def refused(*_given, **_options):
        raise RuntimeError("unable to mmap 96 bytes from file: No such device (19)")

    monkeypatch.setattr(walking, "free_memory", lambda: 0.0)
    monkeypatch.setattr(torch, "from_file", refused)
    assert room((2, 3, 4), "cpu").fill_(1).sum() == 24


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
