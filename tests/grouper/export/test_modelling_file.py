"""Attention of modeling_ragged.py beside a loop over query heads, written from the definition."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grouper import Architecture, Grouping, HeadLayout, LayerLayout, export
from grouper.export.hf.ragged import modelling_file

READERS = [[1, 4], [0, 2, 5], [3], [6, 7]]  # eight query heads over four KV heads
EQUAL = [[1, 4], [0, 2], [3, 5], [6, 7]]
LAST_IS_SHORT = [[0, 1, 2], [3, 4, 5], [6, 7]]  # every head is in the slot of its own number, and there is one more
H, d, SEEN = 8, 4, 5


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """file_of("bert"): the modelling file of that family, imported."""

    @cache
    def get(model_type: str) -> ModuleType:
        sizes = {"hidden_size": H * d, "num_attention_heads": H, "num_key_value_heads": H, "num_hidden_layers": 2}
        config = {"model_type": model_type, **sizes}
        path = tmp_path_factory.mktemp(model_type) / "modeling_ragged.py"
        path.write_text(modelling_file(Architecture.of(config)))
        return imported(path, f"modeling_ragged_of_{model_type}")

    return get


def imported(path: Path, name: str) -> ModuleType:
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoder_of(file: ModuleType, readers, implementation: str, query_of_head=None, is_causal: bool = False):
    """A BERT's attention with these KV heads, of a model that computes with this kernel."""
    layer = nn.Module()
    for name in file.PROJECTIONS:
        setattr(layer, name, nn.Linear(H * d, H * d))
    layer.config = SimpleNamespace(_attn_implementation=implementation)
    layer.is_causal = is_causal
    file.install_groups(layer, readers, query_of_head)
    return layer.eval()


def decoder_of(file: ModuleType, readers, implementation: str, query_of_head=None):
    """A Llama's attention with these KV heads."""
    sizes = {"hidden_size": H * d, "num_attention_heads": H, "head_dim": d, "num_hidden_layers": 1}
    config = file.RaggedConfig(**sizes, num_key_value_heads=H, attn_implementation=implementation)
    layer = file.base.LlamaAttention(config, 0)
    file.install_groups(layer, readers, query_of_head)
    return layer.eval()


@pytest.fixture(params=["encoder", "decoder"])
def attention_of(request, file_of):
    """attention_of(readers, kernel, query_of_head): a module of either kind, and the function that it calls."""
    file = file_of({"encoder": "bert", "decoder": "llama"}[request.param])
    make = {"encoder": encoder_of, "decoder": decoder_of}[request.param]
    return lambda *given: (make(file, *given), file.ragged_attention)


@pytest.fixture
def encoder(file_of):
    return file_of("bert")


def another(module, query, key, value, mask, scaling=None, position_bias=None, **_others):
    """A kernel that is neither torch's nor eager: by equal groups. It notes what it sees."""
    widest, odd = divmod(query.shape[1], key.shape[1])
    assert not odd
    another.saw = {"query": query, "mask": mask, "name": module.config._attn_implementation}
    key, value = (t.repeat_interleave(widest, 1) for t in (key, value))
    mask = mask if mask is None or mask.ndim == 4 else mask[:, None, None].bool()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, -math.inf)
    scores = query @ key.transpose(2, 3) * scaling + (0 if mask is None else mask)
    weights = (scores + (0 if position_bias is None else position_bias)).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("another", another)


def by_heads(readers, query, key, value, added, query_of_head=None) -> torch.Tensor:
    """[batch, tokens, H, d]. added: to the scores of each head of the original [batch, H, tokens, seen]."""
    order = [head for heads in readers for head in heads]
    of_head = query_of_head or range(H)
    out = []
    for place, head in enumerate(order):
        group = next(g for g, heads in enumerate(readers) if head in heads)
        scores = query[:, of_head[place]] @ key[:, group].transpose(1, 2) / math.sqrt(d) + added[:, head]
        out.append(scores.softmax(-1) @ value[:, group])
    return torch.stack(out, 2)


def given(tokens: int, heads: int = H, kv_heads: int = 4):
    g = torch.Generator().manual_seed(tokens)
    query = torch.randn(2, heads, tokens, d, generator=g, dtype=torch.float64)
    key, value = (torch.randn(2, kv_heads, SEEN, d, generator=g, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(1, H, tokens, SEEN, generator=g, dtype=torch.float64)
    seen = torch.rand(2, 1, tokens, SEEN, generator=g) < 0.6
    seen[..., 0] = True
    return query, key, value, bias, seen


MASKS = {
    "none": lambda seen: (None, torch.zeros(1, 1, 1, 1)),
    "bool": lambda seen: (seen, torch.zeros(seen.shape).masked_fill(~seen, -math.inf)),
    "numbers": lambda seen: (0.5 - 3.0 * ~seen, 0.5 - 3.0 * ~seen),  # as those who weigh tokens give them
    "each head": lambda seen: ((0.1 * torch.arange(8.0)[:, None, None] * seen),) * 2,
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "another"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("readers", [READERS, EQUAL, LAST_IS_SHORT])
def test_every_head_reads_its_own(attention_of, readers, tokens, mask, implementation):
    query, key, value, _bias, seen = given(tokens, kv_heads=len(readers))
    mask, added = MASKS[mask](seen)
    if implementation == "eager" and mask is not None and mask.dtype == torch.bool:
        return  # that kernel adds its mask: transformers gives it numbers
    mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    layer, attend = attention_of(readers, implementation)
    got, weights = attend(layer, query, key, value, mask, scaling=d**-0.5, is_causal=False)
    wanted = by_heads(readers, query, key, value, added.double().expand(2, H, tokens, SEEN))
    near = 1e-6 if implementation == "eager" else 1e-12  # Llama takes its softmax in float32
    assert got.shape == (2, tokens, H, d) and torch.allclose(got, wanted, atol=near)
    assert weights is None if implementation == "sdpa" else weights.shape == (2, H, tokens, SEEN)


@pytest.mark.parametrize("implementation", ["sdpa", "another"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_positional_biases_are_those_of_the_originals_heads(encoder, tokens, mask, implementation):
    """T5: biases for each head of the original, beside whatever mask there is."""
    query, key, value, bias, seen = given(tokens)
    mask, added = MASKS[mask](seen)
    mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    layer = encoder_of(encoder, READERS, implementation)
    got, _ = encoder.ragged_attention(layer, query, key, value, mask, scaling=d**-0.5, position_bias=bias)
    assert torch.allclose(got, by_heads(READERS, query, key, value, bias + added.double()), atol=1e-12)


def test_a_decoder_without_a_mask_sees_what_came_before(encoder):
    """With biases and without; a single token sees all that is kept."""
    g = torch.Generator().manual_seed(0)
    query, (key, value) = given(SEEN)[0], given(SEEN)[1:3]
    bias = torch.randn(1, H, SEEN, SEEN, generator=g, dtype=torch.float64)
    later = torch.zeros(SEEN, SEEN).masked_fill(torch.ones(SEEN, SEEN).triu(1) > 0, -math.inf).double()
    for readers in (READERS, EQUAL):
        layer = encoder_of(encoder, readers, "sdpa", is_causal=True)
        for more, added in (({}, torch.zeros(1, H, SEEN, SEEN)), ({"position_bias": bias}, bias)):
            got, _ = encoder.ragged_attention(layer, query, key, value, None, scaling=d**-0.5, **more)
            assert torch.allclose(got, by_heads(readers, query, key, value, added + later), atol=1e-12)
        last, _ = encoder.ragged_attention(layer, query[:, :, -1:], key, value, None, scaling=d**-0.5)
        whole, _ = encoder.ragged_attention(layer, query, key, value, None, scaling=d**-0.5)
        assert torch.allclose(last, whole[:, -1:], atol=1e-12)
        both, _ = encoder.ragged_attention(layer, query, key, value, None, scaling=d**-0.5, is_causal=False)
        assert torch.allclose(both, by_heads(readers, query, key, value, torch.zeros(1, H, 1, 1)), atol=1e-12)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "another"])
def test_shared_query_projections(attention_of, implementation):
    """Three projections; outputs, in the order of the readers, take these."""
    of_head = [0, 2, 1, 1, 0, 2, 2, 0]
    layer, attend = attention_of(READERS, implementation, of_head)
    rows = [p.out_features for n, p in layer.named_children() if n not in ("o_proj", "out_proj")]
    assert rows == [3 * d, 4 * d, 4 * d]
    for tokens in (1, 3):
        query, key, value, _bias, seen = given(tokens, heads=3)
        mask, added = MASKS["numbers"](seen)
        got, _ = attend(layer, query, key, value, mask.double(), scaling=d**-0.5)
        wanted = by_heads(READERS, query, key, value, added.double().expand(2, H, tokens, SEEN), of_head)
        assert torch.allclose(got, wanted, atol=1e-6 if implementation == "eager" else 1e-12)


@pytest.mark.parametrize(
    ("readers", "tokens", "masked", "queries", "kv_heads", "grouped"),
    [
        (READERS, 1, True, (4, 3), 4, False), (EQUAL, 1, False, (4, 2), 4, False),
        (READERS, 3, False, (8, 3), 8, False), (EQUAL, 3, False, (8, 3), 4, True), (EQUAL, 3, True, (8, 3), 8, False),
    ],
)  # fmt: skip
def test_torchs_kernel_gets_what_is_fastest_of_encoders(
    encoder, monkeypatch, readers, tokens, masked, queries, kv_heads, grouped
):
    """One token: the group's queries as tokens. Many: the heads that there are, K and V repeated or grouped."""
    calls = []

    def noted(query, key, value, enable_gqa=False, **options):
        calls.append((query.shape[1:3], key.shape[1], value.shape[1], enable_gqa))
        return torch.zeros_like(query)

    monkeypatch.setattr(encoder, "scaled_dot_product_attention", noted)
    query, key, value, _bias, seen = given(tokens)
    encoder.ragged_attention(encoder_of(encoder, readers, "sdpa"), query, key, value, seen if masked else None)
    assert calls == [(queries, kv_heads, kv_heads, grouped)]


def test_where_slots_are_the_heads_nothing_is_copied(attention_of):
    layer, attend = attention_of(EQUAL, "another")
    query, key, value, *_ = given(3)
    attend(layer, query, key, value, None, scaling=1.0)
    assert another.saw["query"] is query


@pytest.mark.parametrize("tokens", [1, 3])
def test_weights_are_dropped_out(attention_of, tokens):
    """All of them, here."""
    layer, attend = attention_of(READERS, "sdpa")
    query, key, value, *_ = given(tokens)
    assert not attend(layer, query, key, value, None, dropout=1.0)[0].any()


def test_masks_that_are_not_for_heads_reach_the_kernel_as_they_are(attention_of):
    """Flash attention takes [batch, seen], here of as many tokens as heads."""
    query = given(1)[0]
    key, value = torch.randn(2, 2, 4, H, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, H, dtype=torch.long)
    mask[0, 5:] = 0
    layer, attend = attention_of(READERS, "another")
    got, _ = attend(layer, query, key, value, mask, scaling=d**-0.5)
    added = torch.zeros(2, 1, 1, H).masked_fill(mask[:, None, None] == 0, -math.inf).double()
    assert another.saw["mask"] is mask
    assert torch.allclose(got, by_heads(READERS, query, key, value, added.expand(2, H, 1, H)), atol=1e-12)


def test_sinks_are_those_of_the_query_heads(file_of):
    """Each a score more, which takes a share of the softmax and gives nothing; equal groups and others."""
    file, g = file_of("gpt_oss"), torch.Generator().manual_seed(2)
    sinks = torch.randn(H, generator=g, dtype=torch.float64)
    for readers in ([[0, 1], [2, 3], [4, 5], [6, 7]], [[0], [1, 2, 3], [4, 5], [6, 7]]):
        sizes = {"hidden_size": H * d, "num_attention_heads": H, "head_dim": d, "num_hidden_layers": 1}
        config = file.RaggedConfig(**sizes, num_key_value_heads=H, attn_implementation="eager")
        layer = file.base.GptOssAttention(config, 0)
        file.install_groups(layer, readers)
        assert layer.sinks.shape == (H,)
        query, key, value, *_ = given(3)
        layer.sinks.data, layer.training = sinks, False
        got, _ = file.ragged_attention(layer, query, key, value, None, scaling=d**-0.5, s_aux=layer.sinks)
        for head in range(H):
            group = next(i for i, heads in enumerate(readers) if head in heads)
            scores = query[:, head] @ key[:, group].transpose(1, 2) * d**-0.5
            share = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks[head].exp())
            assert torch.allclose(got[:, :, head], share @ value[:, group], atol=1e-12)
        assert layer.sinks is not None and torch.equal(layer.sinks, sinks), "the layer keeps one a head"


def test_who_reads_what_is_found_by_place(file_of):
    """Decoders count readers for each layer; encoders name them for each place."""
    file = file_of("llama")
    config = file.RaggedConfig(kv_groups=[[1, 2], [3]])
    assert file.attentions(config) == {
        "layers.0.self_attn": ([[0], [1, 2]], None), "layers.1.self_attn": ([[0, 1, 2]], None),
    }  # fmt: skip
    config.query_of_head = [[0, 1, 1], [0, 0, 0]]
    assert [shared for _, shared in file.attentions(config).values()] == config.query_of_head
    config = file.RaggedConfig(kv_readers={"a.b": [[0, 2], [1]], "c": [[1], [0, 2]]}, query_of_head={"c": [0, 1, 1]})
    assert file.attentions(config) == {"a.b": ([[0, 2], [1]], None), "c": ([[1], [0, 2]], [0, 1, 1])}
    assert "kv_groups" not in config.to_dict(), "what is saved again is what was loaded"
    assert file.slots([1, 3, 2]) == ([0, 0, 0, 1, 2, 3, 4, 5, 5], [0, 3, 4, 5, 6, 7])


def test_new_projections_begin_as_the_family_has_it(file_of):
    file = file_of("llama")
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_hidden_layers": 1, "vocab_size": 8}
    config = file.RaggedConfig(**sizes, intermediate_size=8, initializer_range=1e-6, kv_groups=[[3, 5]])
    key = file.RaggedForCausalLM(config).model.layers[0].self_attn.k_proj.weight
    assert key.shape == (8, 32) and 0 < key.abs().max() < 1e-5


def test_a_class_without_those_places_is_too_new_or_too_old(file_of, monkeypatch, tmp_path):
    file = file_of("llama")
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_hidden_layers": 1, "vocab_size": 8}
    file.RaggedModel(file.RaggedConfig(**sizes, intermediate_size=8))
    with pytest.raises(ImportError, match=r"needs transformers 4\.57 or later"):
        file.RaggedModel(file.RaggedConfig(**sizes, intermediate_size=8, kv_readers={"elsewhere": [[0] * 8]}))
    monkeypatch.delattr(file.base, "ALL_ATTENTION_FUNCTIONS")
    with pytest.raises(ImportError, match=r"needs transformers 4\.57 or later"):
        imported(Path(file.__file__), "too_old")


def test_a_decoders_layer_names_the_models_kernel_but_to_the_thread_that_computes_it(file_of):
    """Serving engines look from outside, kernels from within; also where the forward pass breaks off."""
    file = file_of("llama")
    layer = decoder_of(file, READERS, "another")
    config, seen = layer.config, []
    project = layer.q_proj.register_forward_hook(lambda *_: seen.append(config._attn_implementation))
    states, angles = torch.randn(1, 3, H * d), (torch.ones(1, 3, d), torch.zeros(1, 3, d))
    layer(states, angles, None)
    assert seen == ["grouper_ragged_llama"] and another.saw["name"] == config._attn_implementation == "another"
    with ThreadPoolExecutor(1) as pool:
        file.begin(layer, ())
        assert config._attn_implementation == "grouper_ragged_llama"
        assert pool.submit(lambda: config._attn_implementation).result() == "another"
        file.end(layer)
    config.computing = True  # as in a graph that a compiler made
    assert config._attn_implementation == "grouper_ragged_llama"
    file.end(layer)
    assert config._attn_implementation == "another"
    project.remove()
    with pytest.raises(TypeError):
        layer(states, None, None)
    assert config._attn_implementation == "another" and config.hidden_size == 32
    assert (config.num_attention_heads, config.num_key_value_heads, layer.num_key_value_groups) == (8, 4, 3)


def test_kernels_see_an_encoders_own_configuration(encoder):
    layer = encoder_of(encoder, READERS, "another")
    assert layer.config._attn_implementation == "grouper_ragged_bert"
    encoder.ragged_attention(layer, *given(3)[:3], None, scaling=d**-0.5)
    assert another.saw["name"] == "another" and layer.config._attn_implementation == "grouper_ragged_bert"


def test_families_side_by_side_keep_their_own_functions(file_of):
    """Eager attention of gpt-oss knows sinks, that of Llama does not; whichever file came last."""
    functions = [
        ALL_ATTENTION_FUNCTIONS[file_of(name).RaggedConfig.model_type] for name in ("gpt_oss", "llama", "bert")
    ]
    assert functions == [file_of(name).ragged_attention for name in ("gpt_oss", "llama", "bert")]


def test_a_global_count_is_the_largest_and_is_read_without_a_warning(file_of, monkeypatch):
    """Planners of capacity multiply it by the number of layers: rather too much than too little."""
    theirs = pytest.importorskip("transformers.integrations.heterogeneity.configuration_utils")
    warned = []
    monkeypatch.setattr(theirs.logger, "warning_once", warned.append)
    per_layer = {"1": {"num_attention_heads": 12, "num_key_value_heads": 2}}
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
    config = file_of("llama").RaggedConfig(**sizes, kv_groups=[[2, 2, 2, 2], [2, 6]], per_layer_config=per_layer)
    assert (config.num_key_value_heads, config.num_attention_heads) == (max(map(len, config.kv_groups)), 8)
    assert [one.num_key_value_heads for one in config.per_layer_config] == list(map(len, config.kv_groups)) == [4, 2]
    assert config.to_dict()["num_key_value_heads"] == 4 and not warned


def test_lists_are_copied_to_a_device_once(file_of):
    """For training and for inference each, for tensors of the latter cannot be trained through."""
    file = file_of("llama")
    layer, cpu = decoder_of(file, READERS, "sdpa"), torch.device("cpu")
    first = file.index(layer, "kv_of_head", cpu)
    with torch.inference_mode():
        second = file.index(layer, "kv_of_head", cpu)
        assert second.is_inference() and file.index(layer, "kv_of_head", cpu) is second
    assert file.index(layer, "kv_of_head", cpu) is first and not first.is_inference()
    assert first.tolist() == [0, 0, 1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("name", ["stablelm", "whisper"])
def test_classes_that_keep_a_count_of_heads(name, samples, encoders, tmp_path):
    """StableLM shapes queries by it, Whisper keys and values: where queries are shared, all three differ."""
    folder = encoders(name) if name == "whisper" else samples(name)
    a = Architecture.of(json.loads((folder / "config.json").read_text()))
    each = 8 // a.kv_heads
    kv = Grouping.from_labels([0, 1, 1, 0] if each == 2 else [0, 1, 1, 2, 0, 0, 1, 2], each)
    layout = LayerLayout(kv, kv, Grouping.from_labels([0, 0, 1, 1, 2, 2, 3, 3]))
    done = export(folder, HeadLayout((layout,) * a.layers, 8, a.kv_heads, a.head_dim), tmp_path / "out")
    assert done.export_class == "ragged" and done.self_test.passed
