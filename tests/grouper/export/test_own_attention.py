"""The attention that ragged exports of GPT-2, OPT, BLOOM, MPT and the like bring along, by itself."""

import pytest
import torch
from family_samples import RAGGED, layout_for
from transformers import AutoModelForCausalLM, DynamicCache

from grouper import export


@pytest.fixture(scope="module")
def attention(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "gpt2"
    export(samples("gpt2"), layout_for(samples("gpt2"), RAGGED), folder, merge="mean")
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).transformer.h[0].attn


@pytest.mark.parametrize("name", ["layer_past", "past_key_values", "cache", "a_name_of_tomorrow"])
@torch.no_grad()
def test_the_cache_is_used_whatever_transformers_calls_it(attention, name):
    stream = torch.randn(2, 6, attention.q_proj.in_features, generator=torch.Generator().manual_seed(0))
    whole, _ = attention(stream)
    cache = DynamicCache()
    first, _ = attention(stream[:, :5], **{name: cache})
    last, _ = attention(stream[:, 5:], **{name: cache})
    assert cache.get_seq_length() == 6
    assert torch.allclose(torch.cat([first, last], 1), whole, atol=1e-5)


def test_a_mask_over_tokens_that_no_cache_holds_is_refused(attention):
    stream = torch.zeros(1, 1, attention.q_proj.in_features)
    attention(stream, attention_mask=torch.zeros(1, 1, 1, 1))
    with pytest.raises(RuntimeError, match="no cache that holds them: this release of transformers is newer"):
        attention(stream, attention_mask=torch.zeros(1, 1, 1, 6))
