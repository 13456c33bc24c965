"""Leading eigenvectors and eigenvalue sums of positive semidefinite matrices, without full decompositions.

The merge of a group is the leading subspace of its Gram matrix, and its error is the trace minus the sum of the leading
eigenvalues. Small matrices are decomposed directly. For a large matrix M, a subspace is filtered until it has
converged. The filter is a Chebyshev polynomial of M, small between 0 and the subspace's least Ritz value and steep
beyond it, so that it removes other directions (Zhou, Saad, Tiago and Chelikowsky 2006). Nearly all the work is matrix
products. The subspace is half as wide again as required, so that close eigenvalues at the edge do not slow down
convergence. The sum over a subspace never exceeds the true sum, and falls short of it by the square of the angle
between the two subspaces.
"""

import math

import torch
from torch import Tensor

DENSE = {"cpu": 2048, "cuda": 512}  # rows up to which a full decomposition is faster
ON_CPU = 768  # rows up to which a CPU core decomposes about as fast as a GPU; there are more cores than GPUs
TOGETHER = 32  # matrices that a GPU decomposes at a time; more would need gigabytes of memory, and not be faster
ACCURACY = 1e-5  # relative to the error, tr M minus the sum
FLOOR = 1e-15  # relative to the trace; a smaller error is rounding
ROUNDS = 40
DEGREE = 10  # largest degree of a filter
GROWTH = 1e8  # largest gain of the strongest direction in a filter; beyond, it drowns the others
CAP = 2.2  # largest strength of a direction, relative to the cut, for a filter of full degree


def leading_vectors(gram: Tensor, count: int) -> Tensor:
    """Leading `count` eigenvectors [X, count] of gram [X, X], strongest first, each with its largest entry positive."""
    if _is_small(gram, count):
        u = torch.linalg.eigh((gram + gram.mT) / 2)[1][:, -count:].flip(1)
    else:
        u = filtered(gram[None], count, _random(gram[None], count))[1][0, :, :count]
    signs = torch.gather(u, 0, u.abs().argmax(0, keepdim=True)).sign()
    return u * torch.where(signs == 0, 1.0, signs)


def beyond_leading(gram: Tensor, count: int, start: Tensor | None = None) -> Tensor:
    """Trace of each matrix minus its `count` largest eigenvalues [n]; zero up to rounding if there are no others. gram:
    [n, X, X]. start: [n, X, anything] near the leading subspaces. The relative error is at most 1e-4, and usually far
    smaller."""
    if _is_small(gram, count):
        if gram.is_cuda and gram.shape[-1] <= ON_CPU:
            return beyond_leading(gram.cpu(), count).to(gram.device)
        parts = [torch.linalg.eigvalsh(part) for part in gram.split(TOGETHER)]
        return torch.cat(parts)[:, :-count].clamp_min(0).sum(1)
    start = _random(gram, count) if start is None else torch.cat([start, _random(gram, count)], -1)
    sums, _ = filtered(gram, count, start[..., : _width(count)])
    return (_trace(gram) - sums).clamp_min(0)


def filtered(gram: Tensor, count: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [n] of the `count` largest eigenvalues, and vectors like `start` whose first `count` span their subspace,
    strongest first. gram: [n, X, X] positive semidefinite. start: [n, X, more than count]."""
    values, vectors, wrong = _ritz(gram, start)
    sums, trace = values[:, :count].sum(1), _trace(gram)
    gained, trusted = torch.full_like(sums, float("inf")), torch.ones_like(sums, dtype=torch.bool)
    active = torch.arange(len(gram), device=gram.device)
    for number in range(ROUNDS):
        part = gram if len(active) == len(gram) else gram[active]
        left = (trace - sums)[active].clamp_min(0) + FLOOR * trace[active]
        room = torch.where(trusted[active], left, 0)
        better, degree = _filter(part, vectors[active], values[active], wrong[active], room)
        result = _ritz(part, better)
        found = result[0][:, :count].sum(1)
        gain, before = (found - sums[active]).clamp_min(0), gained[active]
        kept = found >= sums[active] - FLOOR * trace[active]
        for all_of, new in zip((values, vectors, wrong), result):
            all_of[active[kept]] = new[kept]
        sums[active], gained[active] = torch.maximum(found, sums[active]), gain
        astray = ~kept & trusted[active]  # a vector was less exact than estimated: repeat without fixing it
        trusted[active[astray]] = False
        # gains fall geometrically once strong directions are found: all later rounds together would add about this
        missing = gain if number < 2 else gain * (gain / before.clamp_min(1e-300)).clamp_max(1)
        left = (trace - sums)[active].clamp_min(0)
        hasty = (degree < DEGREE) & (number < 3) & (gain > FLOOR * trace[active])
        active = active[astray | hasty | (missing > ACCURACY * left + FLOOR * trace[active])]
        if not len(active):
            break
    return sums, vectors


def _ritz(gram: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values [n, width] of the span of x [n, X, width], largest first, their vectors like x, and the residual of
    each as an eigenvector, |M v - value v| [n, width]."""
    x = _orthonormal(x)
    image = gram @ x
    small = x.mT @ image
    values, turns = _eigh((small + small.mT) / 2)
    values, turns = values.clamp_min(0).flip(-1), turns.flip(-1)
    x = x @ turns
    return values, x, (image @ turns - x * values[:, None]).norm(dim=1)


def _filter(gram: Tensor, x: Tensor, values: Tensor, wrong: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Filter x by the Chebyshev polynomial T, cut at the least of the values. Returns T(2 M / cut - 1) x with columns
    of length one, and the degrees of T. x, values, wrong: as _ritz returns them. left: [n], the trace minus the sum so
    far.

    A few directions far stronger than the others would soon drown them. Once such directions are known well enough,
    they are kept fixed, and M is deflated so that their values count as `CAP` times the cut. Until then the polynomial
    has a lower degree. The error of a Ritz value is at most wrong^2 over its distance from the others.
    """
    cut = torch.maximum(values[:, -1], 1e-12 * values[:, 0]).clamp_min(1e-300)[:, None]
    known = (values > CAP * cut) & (wrong < CAP / 2 * cut)
    known &= wrong.square() < ACCURACY / values.shape[1] * left[:, None] * values
    excess = torch.where(known, values - CAP * cut, 0)[:, None]  # [n, 1, width]
    strongest = torch.where(known, CAP * cut, values).amax(1) / cut[:, 0]
    steepest = torch.acosh((2 * strongest - 1).clamp_min(1 + 1e-12))
    degree = (math.log(2 * GROWTH) / steepest).long().clamp(1, DEGREE)

    def times(y: Tensor) -> Tensor:
        return (gram @ y - (x * excess) @ (x.mT @ y)) / (cut[:, None] / 2) - y

    before, now = x, times(x)
    for step in range(2, int(degree.max()) + 1):
        before, now = now, torch.where(step <= degree[:, None, None], 2 * times(now) - before, now)
    now = torch.where(known[:, None], x, now)
    return now / now.norm(dim=1, keepdim=True).clamp_min(1e-300), degree


def _orthonormal(x: Tensor) -> Tensor:
    """Orthonormal basis of the columns of x [n, X, width], in the same shape. Cholesky factors are used twice, so that
    only products are needed and rounding is removed; nearly dependent columns use Householder reflections instead."""
    found, sound = x / x.norm(dim=1, keepdim=True).clamp_min(1e-300), True
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(found.mT @ found)
        found = torch.linalg.solve_triangular(factor.mT, found, upper=True, left=False)
        sound = sound & (failed == 0)
    sound = sound & ((factor.diagonal(dim1=1, dim2=2) - 1).abs().amax(1) < 1e-3)  # the second round hardly changes it
    return found if bool(sound.all()) else torch.linalg.qr(x)[0]


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    if gram.is_cuda and gram.shape[-1] <= ON_CPU:
        values, vectors = torch.linalg.eigh(gram.cpu())
        return values.to(gram.device), vectors.to(gram.device)
    return torch.linalg.eigh(gram)


def _width(count: int) -> int:
    return count + -(-count // 2)


def _is_small(gram: Tensor, count: int) -> bool:
    return gram.shape[-1] <= max(DENSE.get(gram.device.type, 512), 3 * _width(count))


def _random(gram: Tensor, count: int) -> Tensor:
    """Pseudorandom matrices [n, X, width], the same on every call."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(gram.shape[-1], _width(count), generator=generator, dtype=gram.dtype).to(gram.device)
    return start.expand(len(gram), -1, -1)


def _trace(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1)
