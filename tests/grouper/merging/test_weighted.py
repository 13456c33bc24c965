"""How much of a K head its readers see."""

import pytest
import torch
from random_layers import LABELS, ROTARY, G, H, d, random_attention, random_moments, with_bias

from grouper import GrouperError, LayerLayout
from grouper.merging.weighted import Weighted, query_energy


@pytest.mark.parametrize("rope", ROTARY)
def test_query_energy_is_what_survives_rope(rope):
    """E q q^T over the readers, averaged over quarter turns of every plane."""
    attention, inputs = random_attention(31, ROTARY[rope]), random_moments(31)
    q = with_bias(attention.q, attention.q_bias)
    for kv in range(G):
        expected = sum(q[h] @ inputs.second_moment @ q[h].T for h in (2 * kv, 2 * kv + 1))
        for a, b in [] if attention.planes is None else attention.planes.tolist():
            turn = torch.eye(d).double()
            turn[[a, b], [a, b]] = 0
            turn[a, b], turn[b, a] = -1, 1
            turns = [torch.linalg.matrix_power(turn, quarter) for quarter in range(4)]
            expected = sum(t @ expected @ t.T for t in turns) / 4
        assert torch.allclose(query_energy(attention, inputs.second_moment)[kv], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rope", ROTARY)
@pytest.mark.parametrize("kind", ["scalar", "column", "row"])
@pytest.mark.parametrize("across", [False, True], ids=["own", "across"])
def test_keys_are_fitted_to_their_readers(rope, kind, across):
    """No other weights of that kind have a lower error of K, weighed by what the readers see: queries of what enters
    q."""
    attention, inputs = random_attention(32, ROTARY[rope]), random_moments(32, across)
    layout = LayerLayout.from_labels(LABELS, H // G)
    merged = Weighted(kind=kind).merge(attention, layout, inputs)
    k, shared = with_bias(attention.k, attention.k_bias), with_bias(merged.k, merged.k_bias)
    seen = query_energy(attention, (inputs.queries or inputs).second_moment)

    def error(group: int, head: torch.Tensor) -> float:
        changes = [(k[s] - head, seen[s]) for s in layout.k.members[group]]
        return sum(float((w @ e @ inputs.second_moment * e).sum()) for e, w in changes)

    shape = {"scalar": (2, 1, 1), "column": (2, d, 1), "row": (2, 1, k.shape[-1])}[kind]
    generator = torch.Generator().manual_seed(0)
    for group, sources in enumerate(layout.k.members):
        best = error(group, shared[group])
        assert best < error(group, k[list(sources)].mean(0)) * (1 - 1e-9)
        for size in (1e-3, 1e-2, 0.1):
            weights = size * torch.randn(shape, generator=generator, dtype=torch.float64)
            assert error(group, shared[group] + (weights * k[list(sources)]).sum(0)) > best


def test_weights_of_no_known_kind_are_refused():
    with pytest.raises(GrouperError, match="kind 'luck': expected one of scalar, column, row"):
        Weighted(kind="luck")
