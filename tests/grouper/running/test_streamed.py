"""Models whose layers are read from disk one after the other: every family gives what it gives in memory."""

import pytest
import torch
from family_samples import SAMPLES

from grouper import Checkpoint, HeadLayout
from grouper.calibration.moments import collect_moments
from grouper.compress import Regrouper
from grouper.evaluation.closeness import Original, closeness_of
from grouper.evaluation.perplexity import nll
from grouper.merging import MEAN
from grouper.refinement.options import RefineOptions
from grouper.refinement.refine import refine_layers
from grouper.running.in_memory import InMemoryModel
from grouper.running.opening import open_model
from grouper.running.streamed import StreamedModel


def tokens(n: int = 4) -> torch.Tensor:
    return torch.randint(3, 190, (n, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_streamed_model_gives_what_one_in_memory_gives(samples, name):
    checkpoint = Checkpoint.open(samples(name))
    model, streamed = InMemoryModel(checkpoint), StreamedModel(checkpoint)
    layer = streamed.architecture.family.layer.format(layer=0)
    layers = streamed.prefix + layer.removesuffix("0.")
    assert all(p.is_meta == n.startswith(layers) for n, p in streamed.model.named_parameters())
    originals = [Original.of(m, tokens()) for m in (model, streamed)]
    for original in originals:
        assert original.found["nll"].mean() == pytest.approx(nll(model.model, tokens()), rel=1e-5)
    for a, b in zip(collect_moments(model, tokens()), collect_moments(streamed, tokens()), strict=True):
        assert torch.allclose(a.second_moment, b.second_moment, rtol=1e-4, atol=1e-5)
        assert torch.allclose(a.keys, b.keys, rtol=1e-4, atol=1e-4)
    a = model.architecture
    layout = HeadLayout.from_labels([[0] * a.kv_heads] * a.layers, a.query_heads, a.head_dim)
    merged = Regrouper(checkpoint).merged(layout, MEAN)
    with torch.no_grad():
        before = model.model(input_ids=tokens()).logits[:, :-1].double().log_softmax(-1)
        with model.installed(layout, merged) as installed:
            loss, after = (
                nll(installed, tokens()),
                installed(input_ids=tokens()).logits[:, :-1].double().log_softmax(-1),
            )
    kl = (before.exp() * (before - after)).sum(-1).mean().item()
    same = (before.argmax(-1) == after.argmax(-1)).double().mean().item()
    for one, original in zip((model, streamed), originals):
        found = closeness_of(one, original, layout, merged)
        assert found["nll"] == pytest.approx(loss, rel=1e-5)
        assert found["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert found["agreement"] == pytest.approx(same, abs=0.02)
    assert all(p.is_meta for n, p in streamed.model.named_parameters() if n.startswith(layers)), "layers are given back"


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2"])
def test_refinement_of_a_streamed_model_is_that_of_one_in_memory(samples, name):
    checkpoint = Checkpoint.open(samples(name))
    a = InMemoryModel(checkpoint).architecture
    labels = [i % (a.kv_heads // 2) for i in range(a.kv_heads)]
    layout = HeadLayout.from_labels([labels] * a.layers, a.query_heads, a.head_dim)
    merged, options = Regrouper(checkpoint).merged(layout, MEAN), RefineOptions("block", steps=4)
    done = [refine_layers(m(checkpoint), layout, merged, tokens(), options) for m in (InMemoryModel, StreamedModel)]
    for layer in range(a.layers):
        one, other = (d(layer) for d in done)
        assert one.before == pytest.approx(other.before, rel=1e-4)
        assert torch.allclose(one.attention.k, other.attention.k, rtol=1e-3, atol=1e-5)


def test_what_memory_does_not_hold_is_streamed(samples):
    checkpoint = Checkpoint.open(samples("llama"))
    size = 4 * sum(info.elements for info in checkpoint.tensors.values())
    assert isinstance(open_model(checkpoint, memory=size), InMemoryModel)
    assert isinstance(open_model(checkpoint, memory=size - 1), StreamedModel)
