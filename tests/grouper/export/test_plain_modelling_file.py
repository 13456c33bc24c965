"""Attention of modeling_ragged_plain.py beside a loop over query heads, written from the definition."""

import math
from types import SimpleNamespace

import pytest
import torch
from family_samples import SAMPLES, check_identity, layout_for, make
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from grouper import export
from grouper.export.hf import modeling_ragged_plain as plain_file

RAGGED = [[0, 0, 1, 0], [0, 1, 2, 1]]
PLAIN = [[0, 1], [2, 3, 6, 7], [4, 5]]  # who reads what in the second layer of that


@pytest.fixture(scope="module")
def plain(samples, tmp_path_factory):
    """plain("gpt2"): the second attention of an exported model, in float64."""

    def get(name: str) -> nn.Module:
        folder = tmp_path_factory.mktemp(name) / "out"
        export(samples(name), layout_for(samples(name), RAGGED), folder)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64).eval()
        return [m for m in model.modules() if type(m).__name__ == "RaggedAttention"][1]

    return get


def plain_by_heads(attention: nn.Module, x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """x [batch, tokens, D]; added: to the scores of each head of the original [batch or 1, H, tokens, tokens]."""
    size = attention.head_dim
    q, k, v = (
        p(x).clamp(-attention.clip, attention.clip) if attention.clip else p(x)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    out = []
    for head, original in enumerate(original for readers in PLAIN for original in readers):
        group = next(g for g, readers in enumerate(PLAIN) if original in readers)
        query = q[..., head * size : (head + 1) * size]
        key, value = (t[..., group * size : (group + 1) * size] for t in (k, v))
        scores = query @ key.transpose(1, 2) * attention.scaling + added[:, original]
        out.append(scores.softmax(-1) @ value)
    return attention.o_proj(torch.cat(out, -1))


def later(tokens: int) -> torch.Tensor:
    return torch.zeros(tokens, tokens).masked_fill(torch.ones(tokens, tokens).triu(1) > 0, -math.inf).double()


@pytest.mark.parametrize(
    ("name", "biased"), [("gpt2", None), ("opt", None), ("bloom", "alibi"), ("mpt", "position_bias")]
)
def test_without_a_mask_each_token_sees_all_before_it_cached_or_not(plain, name, biased):
    """In two steps over a cache as in one; biases of the original's heads for the distance to each token."""
    attention = plain(name)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 64, generator=g, dtype=torch.float64)
    slopes = torch.randn(8, 1, generator=g, dtype=torch.float64)
    added, more = later(6).expand(1, 8, 6, 6), lambda seen: {}
    if biased == "alibi":  # Bloom: [batch * heads, 1, longest], by the place of what is seen
        more = lambda seen: {"alibi": (slopes * torch.arange(8)).repeat(2, 1)[:, None]}  # noqa: E731
        added = added + (slopes * torch.arange(6))[None, :, None]
    elif biased:  # MPT: [heads, 1, longest], of which the last ones are for what is seen
        bias = torch.randn(8, 1, 8, generator=g, dtype=torch.float64)
        more = lambda seen: {"position_bias": bias}  # noqa: E731
        added = added + bias[..., 2:]
    with torch.no_grad():
        wanted = plain_by_heads(attention, x, added)
        whole, _ = attention(x, **more(6))
        assert torch.allclose(whole, wanted, atol=1e-10)
        cache = DynamicCache()
        steps = [attention(x[:, at:to], past_key_values=cache, **more(to))[0] for at, to in ((0, 2), (2, 5), (5, 6))]
        assert torch.allclose(steps[2], wanted[:, 5:], atol=1e-10)
        if biased != "position_bias":  # which go by the distance from the last place: linear ones in the real model
            assert torch.allclose(torch.cat(steps, 1), wanted, atol=1e-10)


def test_masks_of_either_kind_and_longer_than_what_is_seen(plain):
    """True where nothing may be seen, or numbers to add; static caches bring masks over places that are still empty."""
    attention = plain("opt")
    x = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.4
    hidden[..., 0] = False
    numbers = torch.zeros(2, 1, 4, 4, dtype=torch.float64).masked_fill(hidden, torch.finfo(torch.float64).min)
    with torch.no_grad():
        wanted = plain_by_heads(attention, x, numbers.expand(2, 8, 4, 4))
        beyond = torch.cat([numbers, torch.zeros(2, 1, 4, 3, dtype=torch.float64)], -1)
        with pytest.raises(RuntimeError, match="a mask over earlier tokens but no cache that holds them"):
            attention(x, attention_mask=beyond)
        cache = DynamicCache()  # whose places behind the tokens are empty: as of static ones, the mask is cut
        assert torch.allclose(attention(x, attention_mask=beyond, cache=cache)[0], wanted, atol=1e-10)
        for mask in (hidden, numbers, numbers.expand(2, 8, 4, 4)):
            assert torch.allclose(attention(x, attention_mask=mask)[0], wanted, atol=1e-10)
        each = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        assert torch.allclose(attention(x, attention_mask=each)[0], plain_by_heads(attention, x, each), atol=1e-10)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}), ("gpt2", {"scale_attn_weights": False}),
        ("mpt", {"attn_config": {"clip_qkv": 0.5}}), ("mpt", {"attn_config": {"softmax_scale": 0.3}}),
        ("mpt", {"attn_config": {"alibi_bias_max": 2}}), ("opt", {"enable_bias": False}),
    ],
)  # fmt: skip
def test_what_a_family_may_do_otherwise_is_done_so_too(prompt, tmp_path, name, more):
    family, options = SAMPLES[name]
    check_identity(make(tmp_path / "in", family, {**options, **more}), tmp_path, prompt, "mean")


@pytest.mark.parametrize(
    ("says", "config", "scaling"),
    [
        ({"scaling": 0.3}, {}, 0.3), ({"inv_norm_factor": 0.4}, {}, 0.4), ({"softmax_scale": 0.6}, {}, 0.6),
        ({}, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}, 0.5),
        ({}, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": True}, 0.25),
        ({}, {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, 0.5),
    ],
)  # fmt: skip
def test_scores_are_scaled_as_the_families_class_does(says, config, scaling):
    """Heads of 4, the second layer. transformers 4's GPT-2 has nothing that says it."""
    sizes = {"hidden_size": 16, "kv_groups": [[4], [1, 3]], "head_order": [[0, 1, 2, 3], [2, 0, 1, 3]]}
    config = SimpleNamespace(**sizes, qkv_bias=True, o_bias=False, **config)
    attention = plain_file.RaggedAttention(config, SimpleNamespace(layer_idx=1, **says))
    assert attention.scaling == pytest.approx(scaling) and attention.original_of_slot == [2, 2, 2, 0, 1, 3]
    biases = [p.bias is not None for p in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)]
    assert biases == [True, True, True, False] and attention.k_proj.out_features == 8
