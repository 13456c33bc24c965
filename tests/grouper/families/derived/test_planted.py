"""Other weights with the same output, computed by hand."""

from dataclasses import replace

import pytest
import torch

from grouper.attention import Attention
from grouper.families.derived.planted import copied, turned
from grouper.families.derived.positions import planes_of

H, G, D_HEAD, D, TOKENS, ROTATED = 6, 3, 8, 20, 7, 4


def attention(qk_norm: str | None, bias: bool) -> Attention:
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    biases = (random(H, D_HEAD), random(G, D_HEAD), random(G, D_HEAD), random(D)) if bias else (None,) * 4
    gains = (1 + random(H, D_HEAD).abs(), 1 + random(G, D_HEAD).abs()) if qk_norm else (None, None)
    if qk_norm == "head":
        gains = tuple(gain[:1].expand_as(gain) for gain in gains)
    rows = D_HEAD if qk_norm else ROTATED
    weights = random(H, D_HEAD, D), random(G, D_HEAD, D), random(G, D_HEAD, D), random(D, H, D_HEAD)
    return Attention(*weights, *biases, *gains, planes=planes_of("half", rows), qk_norm=qk_norm)


def output(a: Attention) -> torch.Tensor:
    """[tokens, D]: RoPE by halves of the rows that are planes, softmax over all tokens."""
    x = torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def heads(part: str) -> torch.Tensor:
        one = a.projection(part)
        y = torch.einsum("hdx,tx->thd", one.weight, x) + one.shift
        if one.gain is not None:
            sizes = y.square().mean((-1, -2) if a.qk_norm == "all" else -1, keepdim=True).sqrt()
            y = y / sizes * one.gain
        return y if part == "v" else rotated(y)

    def rotated(y: torch.Tensor) -> torch.Tensor:
        first, second = a.rotated_planes.T
        angle = torch.arange(TOKENS)[:, None, None] * 0.3 ** torch.arange(len(first))
        out = y.clone()
        out[..., first] = y[..., first] * angle.cos() - y[..., second] * angle.sin()
        out[..., second] = y[..., first] * angle.sin() + y[..., second] * angle.cos()
        return out

    q, k, v = heads("q"), heads("k")[:, a.head_read], heads("v")[:, a.head_read]
    weights = torch.einsum("thd,shd->hts", q, k).softmax(-1)
    return torch.einsum("hts,shd,xhd->tx", weights, v, a.o)


@pytest.mark.parametrize("qk_norm", [None, "head", "all"])
@pytest.mark.parametrize("bias", [False, True])
def test_turned_weights_give_the_same_output(qk_norm, bias):
    before = attention(qk_norm, bias)
    after = turned(before)
    assert torch.allclose(output(after), output(before), atol=1e-9)
    changed = [not torch.allclose(getattr(after, n), getattr(before, n)) for n in ("q", "k", "v", "o")]
    assert changed == ([False, False, True, True] if qk_norm == "all" else [True] * 4)
    assert not torch.allclose(turned(before, seed=1).v, after.v)


def test_a_wrong_sign_or_plane_changes_the_output():
    """Signs of k alone, and of one row of a plane."""
    before = attention("head", bias=False)
    after = turned(before)
    assert not torch.allclose(output(replace(after, q=before.q)), output(before), atol=1e-3)
    for planes in (planes_of("interleaved", D_HEAD),):
        other = replace(turned(replace(before, planes=planes)), planes=before.planes)
        assert not torch.allclose(output(other), output(before), atol=1e-3)


def test_copies_are_of_the_first_of_each_label():
    before = attention(None, bias=True)
    after = copied(before, [0, 1, 0])
    assert torch.equal(after.k[2], before.k[0]) and torch.equal(after.v_bias[2], before.v_bias[0])
    assert torch.equal(after.k[:2], before.k[:2]) and torch.equal(after.q, before.q)
