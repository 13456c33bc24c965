"""Leading sums and subspaces of large matrices against full decompositions."""

import pytest
import torch

from grouper.merging import leading as module
from grouper.merging.leading import beyond_leading, leading_vectors


@pytest.fixture
def large(monkeypatch):
    """Every matrix of the tests counts as large."""
    monkeypatch.setattr(module, "DENSE", {"cpu": 1})


def gram(spectrum: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator, dtype=torch.float64))[0]
    return basis * spectrum @ basis.T


FLAT = torch.linspace(2, 1, 160, dtype=torch.float64)
FALLING = torch.logspace(0, -4, 160, dtype=torch.float64)
STEEP = torch.logspace(6, -6, 160, dtype=torch.float64)  # as massive activations make them
STEPS = torch.tensor([9.0] * 12 + [3.0] * 20 + [1.0] * 128, dtype=torch.float64)  # the edge lies within equal ones


@pytest.mark.parametrize("spectrum", [FLAT, FALLING, STEEP, STEPS], ids=["flat", "falling", "steep", "steps"])
def test_what_the_leading_ones_leave_is_that_of_the_full_decomposition(large, spectrum):
    both = torch.stack([gram(spectrum), gram(spectrum.flip(0) * 7, seed=1)])
    expected = spectrum.sort(descending=True)[0][16:].sum().item()
    assert beyond_leading(both, 16).tolist() == pytest.approx([expected, 7 * expected], rel=1e-4)


@pytest.mark.parametrize("spectrum", [FALLING, STEEP], ids=["falling", "steep"])
def test_the_leading_vectors_are_eigenvectors_strongest_first(large, spectrum):
    u = leading_vectors(gram(spectrum), 16)
    _, vectors = torch.linalg.eigh(gram(spectrum))
    assert torch.allclose(u.T @ u, torch.eye(16, dtype=torch.float64), atol=1e-10)
    assert torch.allclose((u[:, :8] * vectors[:, -8:].flip(1)).sum(0).abs(), torch.ones(8).double(), atol=1e-4)
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()
    held = (u * (gram(spectrum) @ u)).sum().item()
    assert spectrum.sum().item() - held == pytest.approx(spectrum[16:].sum().item(), rel=1e-4)


def with_outliers(tail: torch.Tensor, *strong: float) -> torch.Tensor:
    return torch.cat([torch.tensor(strong, dtype=torch.float64) * tail[: len(strong)], tail[len(strong) :]])


RANK = torch.arange(1, 241, dtype=torch.float64)
TAILS = {"flat": RANK**-0.25, "harmonic": 1 / RANK, "falling": RANK**-2, "linear": 1 - RANK / 241}
STRONG = {
    "none": (),
    "one": (1e2,),
    "one, huge": (1e8,),
    "many": (1e4,) * 12,
    "ever more": (1e6, 1e5, 1e4, 1e3, 1e2, 10),
}


@pytest.mark.parametrize("strong", STRONG.values(), ids=STRONG)
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_few_strong_directions_do_not_hide_the_others(large, tail, strong):
    """As massive activations make them: the strong ones are found at once, and nearly all of the trace with them."""
    spectrum = with_outliers(tail, *strong)
    expected = spectrum.sort(descending=True)[0][16:].sum().item()
    assert beyond_leading(gram(spectrum)[None], 16).item() == pytest.approx(expected, rel=1e-4)


def test_a_flat_tail_under_a_spike_is_waited_for(large):
    """While the spike is unknown, filters are of degree one, under which such a tail hardly gains anything."""
    spectrum = with_outliers(0.993 - 0.026 * (RANK - 1) / 240, 1.1e6)
    expected = spectrum.sort(descending=True)[0][10:].sum().item()
    assert beyond_leading(gram(spectrum)[None], 10).item() == pytest.approx(expected, rel=1e-4)


def test_a_filter_that_loses_ground_is_taken_back(large, monkeypatch):
    calls, filter_once = [], module._filter

    def spoilt(matrix, x, *rest):
        calls.append(0)
        better, degree = filter_once(matrix, x, *rest)
        return (_orthogonal_to(better) if len(calls) == 2 else better), degree

    monkeypatch.setattr(module, "_filter", spoilt)
    expected = FLAT.sort(descending=True)[0][16:].sum().item()
    assert beyond_leading(gram(FLAT)[None], 16).item() == pytest.approx(expected, rel=1e-4)
    assert len(calls) > 3


def _orthogonal_to(x: torch.Tensor) -> torch.Tensor:
    """As many columns, none of them in the span of x."""
    return torch.linalg.qr(x, mode="complete")[0][..., -x.shape[-1] :]


def test_what_a_matrix_leaves_does_not_depend_on_the_others_beside_it(large):
    both = torch.stack([gram(FLAT), gram(STEEP, seed=1)])
    alone = torch.cat([beyond_leading(m[None], 16) for m in both])
    assert torch.equal(beyond_leading(both, 16), alone)


def test_nothing_is_left_of_a_matrix_of_low_rank(large):
    spectrum = torch.cat([torch.linspace(3, 1, 16), torch.zeros(144)]).double()
    assert beyond_leading(gram(spectrum)[None], 16).item() == pytest.approx(0, abs=1e-12 * spectrum.sum().item())
    assert beyond_leading(torch.zeros(1, 160, 160, dtype=torch.float64), 16).item() == 0


def test_a_start_that_is_right_already_takes_one_round(large, monkeypatch):
    rounds, filter_once = [], module._filter
    monkeypatch.setattr(module, "_filter", lambda *a: rounds.append(0) or filter_once(*a))
    matrix = gram(FALLING)
    start = torch.linalg.eigh(matrix)[1][:, -24:].flip(1)
    beyond_leading(matrix[None], 16, start[None])
    assert len(rounds) == 1
    beyond_leading(matrix[None], 16)
    assert len(rounds) > 2


@pytest.mark.parametrize("alike", [0.0, 1e-3, 1e-9, 1e-20], ids=["not at all", "a little", "much", "the same"])
def test_bases_are_orthonormal_however_much_columns_are_alike(alike):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64)
    if alike:
        x[1, :, 5] = x[1, :, 0] + alike * x[1, :, 5]
    basis = module._orthonormal(x)
    assert torch.allclose(basis.mT @ basis, torch.eye(6, dtype=torch.float64).expand(2, 6, 6), atol=1e-12)
    outside = x - basis @ (basis.mT @ x)
    assert outside.abs().max() < 1e-12  # it spans what x spans
