"""Random layers of attention, moments of inputs, and the error of a merge written from its definition."""

from dataclasses import replace

import torch

from grouper import LayerLayout
from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments, MeasuredInputs

H, G, d, D = 8, 4, 6, 20
ROTARY = {"rope": d, "partial": 4, "none": 0}
LABELS = [0, 1, 0, 1]


def random_attention(seed: int = 0, rotary: int = d, bias: bool = True, dtype=torch.float64) -> Attention:
    g = torch.Generator().manual_seed(seed)
    heads = [torch.randn(n, d, D, generator=g, dtype=dtype) for n in (H, G, G)]
    o = torch.randn(D, H, d, generator=g, dtype=dtype)
    biases = [torch.randn(n, d, generator=g, dtype=dtype) if bias else None for n in (H, G, G)]
    half = rotary // 2
    planes = torch.stack([torch.arange(half), torch.arange(half) + half], -1) if rotary else None
    return Attention(*heads, o, *biases, planes=planes)


def random_moments(seed: int = 0, across: bool = False) -> InputMoments:
    """Of inputs with a mean, some directions much stronger than others. across: what enters q is something else, with
    other directions strong."""
    g = torch.Generator().manual_seed(seed + 50)

    def drawn(strengths: torch.Tensor) -> InputMoments:
        x = torch.randn(400, D, generator=g, dtype=torch.float64) * strengths + torch.randn(
            D, generator=g, dtype=torch.float64
        )
        x = torch.cat([x, torch.ones(400, 1, dtype=torch.float64)], 1)
        return MeasuredInputs(x.T @ x / 400, 400)

    strengths = torch.logspace(1, -1, D)
    own = drawn(strengths)
    return replace(own, queries=drawn(strengths.flip(0))) if across else own


def with_bias(weight, bias):
    return torch.cat([weight, torch.zeros_like(weight[..., :1]) if bias is None else bias[..., None]], -1)


def root(second):
    values, vectors = torch.linalg.eigh(second)
    return vectors * values.clamp_min(0).sqrt()


def calibrated_errors(
    before: Attention, after: Attention, layout: LayerLayout, inputs: InputMoments
) -> tuple[float, float]:
    """(K error, V error) from the definition, over their energies: the function of each query head, not its weights.

    V: |(W_O W_V - W_O' W_V') C^1/2|^2. K with RoPE: per plane the phase-averaged squared score |C^1/2 (q^H k - q'^H k')
    C^1/2|^2; without: the same with real rows and the key side's C centred. On the query side C is of what enters q.
    """
    second = inputs.second_moment
    c, c_of_q = root(second), root((inputs.queries or inputs).second_moment)
    centred = root(second - torch.outer(second[:, -1], second[:, -1]))
    old = [
        with_bias(w, b) for w, b in ((before.q, before.q_bias), (before.k, before.k_bias), (before.v, before.v_bias))
    ]
    new = [with_bias(w, b) for w, b in ((after.q, after.q_bias), (after.k, after.k_bias), (after.v, after.v_bias))]
    k_error = k_energy = v_error = v_energy = 0.0
    rotary = 0 if before.planes is None else before.planes.numel()
    for h in range(H):
        group, kv = layout.k.group_of[h], h // (H // G)
        was = before.o[:, h] @ old[2][kv] @ c
        v_energy += was.square().sum()
        v_error += (was - after.o[:, h] @ new[2][group] @ c).square().sum()
        for a, b in [] if before.planes is None else before.planes.tolist():
            q, q2 = (torch.complex(x[0][h, a], x[0][h, b]) for x in (old, new))
            k, k2 = torch.complex(old[1][kv, a], old[1][kv, b]), torch.complex(new[1][group, a], new[1][group, b])
            weight = 0.5 if rotary < d else 1.0
            left, right = c_of_q.T.to(q.dtype), c.to(q.dtype)
            was = left @ torch.outer(q.conj(), k) @ right
            k_energy += weight * was.abs().square().sum()
            k_error += weight * (was - left @ torch.outer(q2.conj(), k2) @ right).abs().square().sum()
        free = slice(rotary, d)
        was = c_of_q.T @ old[0][h, free].T @ old[1][kv, free] @ centred
        k_energy += was.square().sum()
        k_error += (was - c_of_q.T @ new[0][h, free].T @ new[1][group, free] @ centred).square().sum()
    return float(k_error / k_energy), float(v_error / v_energy)


def small_attention(seed: int, heads: int = 6, bias: bool = True) -> Attention:
    g = torch.Generator().manual_seed(seed)
    d, D = 4, 12
    b = (lambda: torch.randn(heads, d, generator=g)) if bias else (lambda: None)
    return Attention(
        *(torch.randn(heads, d, D, generator=g) for _ in range(3)), torch.randn(D, heads, d, generator=g), b(), b(), b()
    )
