"""What a family's entry says of RoPE and norms, against what its class of transformers computes."""

from dataclasses import replace

import pytest
import torch
from encoder_samples import SAMPLES as ENCODERS
from encoder_samples import examples
from family_samples import SAMPLES

from grouper import Checkpoint
from grouper.attention import Attention, MergedLayer
from grouper.calibration.input_moments import InputMoments
from grouper.running.in_memory import InMemoryModel

TOKENS = torch.randint(3, 199, (2, 12), generator=torch.Generator().manual_seed(0))
WITHOUT_NORM = ("olmo2", "olmo3", "opt-norm-behind")  # before the projections


def turned(attention: Attention, generator: torch.Generator) -> Attention:
    """Another layer with the same scores: every plane of a K head times a complex number, its rows beside RoPE in
    another basis, and the readers' queries the other way round; behind a norm across heads, gains times real
    numbers."""
    rows = lambda x: torch.randn(x, generator=generator, dtype=torch.float64)  # noqa: E731
    if attention.qk_norm == "all":
        a, b = attention.planes.T
        q_norm, k_norm = attention.q_norm.double().clone(), attention.k_norm.double().clone()
        for kv in range(attention.kv_heads):
            factor = 1.5 + rows(len(a)).tanh()
            for gains, heads, by in ((k_norm, [kv], factor), (q_norm, attention.readers_of(kv), 1 / factor)):
                for rotated in (a, b):
                    gains[torch.tensor(heads)[:, None], rotated] *= by
        return replace(attention.to(torch.float64), q_norm=q_norm, k_norm=k_norm)
    part = {n: getattr(attention, n) for n in ("q", "k", "q_bias", "k_bias")}
    q, k, q_bias, k_bias = (None if t is None else t.double().clone() for t in part.values())
    rotary = [] if attention.planes is None else attention.planes.flatten().tolist()
    rest = [i for i in range(attention.head_dim) if i not in rotary]
    for kv in range(attention.kv_heads):
        basis = torch.eye(attention.head_dim, dtype=torch.float64)
        for a, b in [] if attention.planes is None else attention.planes.tolist():
            x, y = (1 + rows(2).abs()).tolist()
            basis[a, a], basis[a, b], basis[b, a], basis[b, b] = x, -y, y, x
        if rest:
            random = torch.linalg.qr(rows((len(rest), len(rest))))[0] * (1 + rows(len(rest)).abs())
            basis[torch.tensor(rest)[:, None], rest] = random
        readers, inverse = attention.readers_of(kv), torch.linalg.inv(basis).T
        k[kv], q[readers] = basis @ k[kv], inverse @ q[readers]
        if k_bias is not None:
            k_bias[kv] = basis @ k_bias[kv]
        if q_bias is not None:
            q_bias[readers] = q_bias[readers] @ inverse.T
    return replace(attention.to(torch.float64), q=q, k=k, q_bias=q_bias, k_bias=k_bias)


def scale_shared_gains(model: InMemoryModel, layer: int, generator: torch.Generator) -> None:
    """Of norms on q and k that are the same for all heads: each plane's gains of k times a number, of q over it."""
    a = model.architecture
    factor = 1.5 + torch.randn(len(a.planes), generator=generator, dtype=torch.float64).tanh()
    for name, by in (("k_norm", factor), ("q_norm", 1 / factor)):
        weight = model.layer(layer).get_submodule(f"{a.family.attention}.{name}").weight
        for rows in a.planes.T:
            weight[rows] = (weight[rows] + a.family.norm_offset) * by - a.family.norm_offset


@pytest.mark.parametrize("name", SAMPLES)
@torch.no_grad()
def test_what_rope_leaves_free_changes_no_logit(samples, name):
    """Complex factors commute with RoPE in its own planes alone."""
    model, generator = (
        InMemoryModel(Checkpoint.open(samples(name)), dtype=torch.float64),
        torch.Generator().manual_seed(0),
    )
    a = model.architecture
    before = model.model(input_ids=TOKENS, use_cache=False).logits
    read = [a.read(model.checkpoint, layer) for layer in range(a.layers)]
    if a.family.qk_norm == "head":
        for layer in range(a.layers):
            scale_shared_gains(model, layer, generator)
        after = model.model(input_ids=TOKENS, use_cache=False).logits
    else:
        other = [MergedLayer(turned(attention, generator)) for attention in read]
        with model.installed(a.ungrouped, other.__getitem__) as installed:
            after = installed(input_ids=TOKENS, use_cache=False).logits
    assert torch.allclose(after, before, atol=1e-4), (after - before).abs().max()


def unit(x: torch.Tensor, moments: InputMoments) -> torch.Tensor:
    """[tokens]: mean square of what a norm gave less its bias, over its gain."""
    gain, bias = moments.diagonal[:-1].sqrt(), moments.mean[:-1]
    return ((x.double() - bias) / gain).square().mean(-1).flatten()


def entered(model: InMemoryModel, run) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What enters q and what enters k in each attention, while `run` is called."""
    layers, seen = range(model.architecture.layers), {}
    hooks = []
    for layer in layers:
        for part, module in (("q", model.query_projection(layer)), ("k", model.key_projection(layer))):
            keep = lambda _m, inputs, key=(layer, part): seen.__setitem__(key, inputs[0])  # noqa: E731
            hooks.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return [(seen[layer, "q"], seen[layer, "k"]) for layer in layers]


@pytest.mark.parametrize("name", SAMPLES)
def test_what_enters_is_of_unit_size_but_for_the_norms_gain_and_bias(samples, name):
    """As moments without text have it."""
    model = InMemoryModel(Checkpoint.open(samples(name)))
    found = entered(model, lambda: model.model(input_ids=TOKENS, use_cache=False))
    if name in WITHOUT_NORM:
        assert not model.architecture.norms
        return
    for layer, (x, _) in enumerate(found):
        size = unit(x, model.architecture.input_moments(model.checkpoint, layer))
        assert torch.allclose(size, torch.ones_like(size), rtol=0.03), (layer, size)


@pytest.mark.parametrize("name", ENCODERS)
def test_what_enters_encoders_is_of_unit_size_but_for_the_norms_gain_and_bias(encoders, name):
    """Across from a decoder to an encoder, queries have one norm, keys another one."""
    model, some = InMemoryModel(Checkpoint.open(encoders(name))), examples(encoders(name), 2)
    a = model.architecture
    decodes = bool(a.family.parts)
    found = entered(model, lambda: model.model(**some.called_with("cpu", torch.float32, decodes)))
    for layer, (q, k) in enumerate(found):
        family, moments = a.family_of(layer), a.input_moments(model.checkpoint, layer)
        assert (moments.queries is not None) == (family.cache == "source")
        for x, of, known in ((q, moments.of_queries, family.norm), (k, moments, family.source_norm or family.norm)):
            if family.cache == "source" and of is moments and family.source_norm is None:
                known = ()
            if known:
                size = unit(x, of)
                assert torch.allclose(size, torch.ones_like(size), rtol=0.03), (a.name_of(layer), size)
            else:
                assert torch.equal(of.second_moment, torch.eye(a.hidden_size + 1, dtype=torch.float64))
    normed = {"vit", "vit-bare", "deit", "t5", "t5-uneven", "mt5", "mbart", "whisper"}
    assert all(bool(a.family_of(i).norm) == (name in normed) for i in range(a.layers))
