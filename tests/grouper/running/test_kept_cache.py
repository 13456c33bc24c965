"""Keys, after RoPE, and values pass through a cache's rounding, in every family of decoders."""

import pytest
import torch
from family_samples import SAMPLES, make
from torch import nn

from grouper import Checkpoint, GrouperError, HeadLayout
from grouper.cache_types import CACHE_TYPES, CacheType
from grouper.compress import Regrouper
from grouper.evaluation.closeness import Original, closeness_of, closeness_of_kept, walked
from grouper.families.decoders import FAMILIES
from grouper.merging import MEAN
from grouper.running.in_memory import InMemoryModel
from grouper.running.kept_cache import kept_as, of_both
from grouper.running.streamed import StreamedModel

WINDOWS = torch.randint(3, 190, (3, 24), generator=torch.Generator().manual_seed(1))
OTHER = CacheType("other", 8, "", lambda values, part: values.roll(1, -1) if part == "v" else values)
SAME = CacheType("same", 8, "", lambda values, part: values)
RECENT = CacheType("recent", 4, "", lambda values, part: values, residual=4)
DECODERS = [name for name, (kind, _) in SAMPLES.items() if not FAMILIES[kind].encodes]


@pytest.fixture(scope="module")
def llama(models):
    return InMemoryModel(Checkpoint.open(models("llama")))


def by_hand(model: InMemoryModel, kind: CacheType) -> torch.Tensor:
    """Logits of a Llama whose attention is written out here."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    inner, config = model.model.model, model.model.config
    d = config.head_dim
    stream = inner.embed_tokens(WINDOWS)
    cos, sin = inner.rotary_emb(stream, torch.arange(WINDOWS.shape[1])[None])
    for layer in inner.layers:
        x, a = layer.input_layernorm(stream), layer.self_attn
        q, k, v = (p(x).unflatten(-1, (-1, d)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = kind.rounded(k, "k"), kind.rounded(v, "v")
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scores = (q @ k.transpose(2, 3) / d**0.5).masked_fill(torch.ones(24, 24).triu(1).bool(), -torch.inf)
        stream = stream + a.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        stream = stream + layer.mlp(layer.post_attention_layernorm(stream))
    return model.model.lm_head(inner.norm(stream))


@pytest.mark.parametrize("name", ["fp8", "fp8-scaled", "bfloat16"])
def test_rounded_as_by_hand(llama, name):
    kind = CACHE_TYPES[name]
    with torch.no_grad():
        stream, wanted, exact = walked(llama, WINDOWS, kept=kind), by_hand(llama, kind), by_hand(llama, SAME)
        found = llama.model.lm_head(llama.model.model.norm(stream))
    effect = (wanted - exact).abs().mean()
    assert effect > 1e-3 and (found - wanted).abs().mean() < effect / 100, "but for values beside a half"


@pytest.mark.parametrize("name", DECODERS)
def test_every_family_asks_its_cache(name, tmp_path):
    """Other values change what a model says, the same do not; neither do rounded and exact tokens side
    by side that are the same."""
    model = InMemoryModel(Checkpoint.open(make(tmp_path / "model", *SAMPLES[name])))
    original = Original.of(model, WINDOWS)
    assert closeness_of_kept(original, SAME)["kl"] < 1e-6 < 1e-5 < closeness_of_kept(original, OTHER)["kl"]
    if model.architecture.family.position != "alibi":
        assert closeness_of_kept(original, RECENT)["kl"] < 1e-6


def test_a_layout_is_kept_as_the_original_is(llama):
    """The original's own weights as a layout, and under a real one; in memory and streamed alike."""
    original, kind = Original.of(llama, WINDOWS), CACHE_TYPES["fp8"]
    alone = HeadLayout.ungrouped(3, 8, 8, 16)
    regrouper = Regrouper(llama.checkpoint)
    found = closeness_of(llama, original, alone, regrouper.merged(alone, MEAN), kept=kind)
    assert found["kl"] == pytest.approx(closeness_of_kept(original, kind)["kl"], rel=1e-3)
    half = HeadLayout.from_labels([[0, 0, 1, 1, 2, 2, 3, 3]] * 3, 8, 16)
    merged = regrouper.merged(half, MEAN)
    kept, exact = (closeness_of(llama, original, half, merged, kept=k)["nll"] for k in (kind, None))
    assert kept != exact
    streamed = StreamedModel(llama.checkpoint)
    again = closeness_of(streamed, Original.of(streamed, WINDOWS), half, merged, kept=kind)["nll"]
    assert again == pytest.approx(kept, rel=1e-5)
    assert closeness_of(llama, original, half, merged)["nll"] == exact, "the hook is gone"


@pytest.mark.parametrize("name", ["q8_0", "fp8-scaled", "quanto4"])
def test_batches_change_nothing(models, monkeypatch, name):
    model = InMemoryModel(Checkpoint.open(models("llama", head_dim=32)))
    one = closeness_of_kept(Original.of(model, WINDOWS), CACHE_TYPES[name])
    monkeypatch.setattr("grouper.evaluation.perplexity.BATCH_TOKENS", (24, 24))
    other = closeness_of_kept(Original.of(model, WINDOWS), CACHE_TYPES[name])
    assert one["nll"] == pytest.approx(other["nll"], rel=1e-6)


def test_newest_tokens_are_seen_exactly():
    """Runs of 2: token 3 is in the second run, so it sees tokens 0 and 1 rounded, 2 and 3 as they are."""
    mask = of_both(None, 4, 2, torch.device("cpu"))[0, 0]
    assert mask[3].tolist() == [True, True, False, False, False, False, True, True]
    assert mask[1].tolist() == [False] * 4 + [True, True, False, False]
    added = of_both(torch.zeros(1, 1, 4, 4), 4, 2, torch.device("cpu"))[0, 0]
    assert (added[3] == 0).tolist() == [True, True, False, False, False, False, True, True]


def test_exact_tokens_lower_the_loss_of_rounding(llama):
    rough = CacheType("rough", 1, "", lambda values, part: values.round())
    original = Original.of(llama, WINDOWS)
    recent = CacheType("recent", 1, "", rough.rounding, residual=24)
    assert closeness_of_kept(original, recent)["kl"] < 1e-6, "all tokens are of the first run"
    some = CacheType("some", 1, "", rough.rounding, residual=8)
    assert 1e-6 < closeness_of_kept(original, some)["kl"] < closeness_of_kept(original, rough)["kl"]


def test_attention_without_a_cache_is_refused():
    class Bare(nn.Module):
        def forward(self, hidden_states):
            return hidden_states

    class Deaf(nn.Module):
        def forward(self, hidden_states, past_key_values=None):
            return hidden_states

    for module, message in ((Bare(), "Bare has no KV cache"), (Deaf(), "Deaf asks no KV cache")):
        with pytest.raises(GrouperError, match=message), kept_as(module, OTHER):
            module(torch.zeros(1, 2, 3))
    with kept_as(Bare(), None):
        pass
