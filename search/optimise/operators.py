"""Group-aware operators on whole populations: arrays in, arrays out, random numbers from one numpy Generator.

A population is labels[n, G], canonical, one grouping per row. Labels are only names: every operator works on the groups
that they stand for.
"""

import numpy as np

from fitness import PairwiseFitness
from grouper.layout import canonical_labels


def random_labels(rng: np.random.Generator, n: int, heads: int, counts: np.ndarray | None = None) -> np.ndarray:
    """Random partitions. counts: number of groups of each row (default: uniform over 1..G - 1)."""
    counts = rng.integers(1, max(2, heads), n) if counts is None else counts
    labels = rng.integers(0, counts[:, None], (n, heads))
    # the first `count` heads of a random order get one group each, so that no group is empty
    order = rng.permuted(np.tile(np.arange(heads), (n, 1)), axis=1)
    fixed = np.arange(heads) < counts[:, None]
    np.put_along_axis(labels, order, np.where(fixed, np.arange(heads), np.take_along_axis(labels, order, 1)), 1)
    return canonical_labels(labels)


def crossover(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Children that keep about half of the first parent's groups whole and group the other heads as the second does."""
    n, heads = first.shape
    kept = rng.random((n, heads)) < 0.5  # by group
    keep = np.take_along_axis(kept, first.astype(np.int64), 1)
    return canonical_labels(np.where(keep, first, second + heads))


def mutate(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """One random change per row: a head moves to another head's group, two heads swap, a head gets a group of its own,
    or two groups join."""
    n, heads = labels.shape
    out = labels.copy()
    rows = np.arange(n)
    a, b = rng.integers(0, heads, (n,)), rng.integers(0, heads, (n,))
    kind = rng.integers(0, 4, n)
    to_other, swap, leave, join = (kind == k for k in range(4))
    out[rows[to_other], a[to_other]] = labels[to_other, b[to_other]]
    out[rows[swap], a[swap]], out[rows[swap], b[swap]] = labels[swap, b[swap]], labels[swap, a[swap]]
    out[rows[leave], a[leave]] = heads
    joined = out[join] == labels[join, a[join]][:, None]
    out[join] = np.where(joined, labels[join, b[join]][:, None], out[join])
    return canonical_labels(out)


def swap_mutate(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Swap two random heads in each row; group sizes stay."""
    out = labels.copy()
    rows = np.arange(len(labels))
    a, b = rng.integers(0, labels.shape[1], (2, len(labels)))
    out[rows, a], out[rows, b] = labels[rows, b], labels[rows, a]
    return canonical_labels(out)


def order_crossover(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Order crossover of the permutations behind equal-sized groupings; the child has the first parent's number of
    groups.

    A grouping's permutation lists its heads group by group, groups in random order. The child keeps a slice of the
    first parent's and fills the other places in the second parent's order.
    """
    n, heads = first.shape
    permutations = []
    for parent in (first, second):
        shuffled = np.take_along_axis(
            rng.permuted(np.tile(np.arange(heads), (n, 1)), axis=1), parent.astype(np.int64), 1
        )
        permutations.append(np.argsort(shuffled, axis=1, kind="stable"))
    a, b = permutations
    cut = np.sort(rng.integers(0, heads + 1, (n, 2)), axis=1)
    place = np.arange(heads)
    inside = (place >= cut[:, :1]) & (place < cut[:, 1:])
    kept = np.zeros((n, heads), bool)  # by head
    np.put_along_axis(kept, a, inside, 1)
    rest = np.argsort(np.take_along_axis(kept, b, 1), axis=1, kind="stable")  # places of b, not-kept heads first
    fill = np.take_along_axis(b, rest, 1)
    slot = np.cumsum(~inside, axis=1) - 1
    child = np.where(inside, a, np.take_along_axis(fill, np.maximum(slot, 0), 1))
    size = heads // (first.max(1) + 1)
    labels = np.empty((n, heads), np.int64)
    np.put_along_axis(labels, child, place // size[:, None], 1)
    return canonical_labels(labels)


def move_deltas(fitness: PairwiseFitness, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Change of the pairwise error by each single move and each swap that keeps the number of groups.

    Returns moves [n, G, groups]: head h to group g, and swaps [n, G, G]: heads h and j change places. Impossible ones
    are inf.
    """
    pairs, by_size = fitness.pairs, fitness.by_size
    n, heads = labels.shape
    groups = int(labels.max()) + 1
    member = labels[:, :, None] == np.arange(groups)  # [n, G, groups]
    to_group = np.matmul(pairs, member.astype(np.float64))  # [n, G, groups] sum of pairs[h, b] over b in g
    size = member.sum(1)  # [n, groups]
    weight = (to_group * member).sum(1)  # [n, groups] 1_g^T pairs 1_g
    own = labels.astype(np.int64)
    own_sum = np.take_along_axis(to_group, own[:, :, None], 2)[:, :, 0]  # [n, G]
    own_size, own_weight = (np.take_along_axis(x, own, 1) for x in (size, weight))

    leave = (own_weight - 2 * own_sum) * by_size[own_size - 1] - own_weight * by_size[own_size]
    larger = by_size[np.minimum(size + 1, heads)]
    enter = (weight[:, None] + 2 * to_group) * larger[:, None] - (weight * by_size[size])[:, None]
    moves = leave[:, :, None] + enter
    moves[member | (own_size <= 1)[:, :, None] | (size == 0)[:, None, :]] = np.inf

    there = np.take_along_axis(
        to_group, np.broadcast_to(own[:, None, :], (n, heads, heads)), 2
    )  # [n, h, j] h to j's group
    gain = (there - pairs - own_sum[:, None, :]) * by_size[own_size][:, None, :]  # j's group: j leaves, h joins
    swaps = 2 * (gain + gain.transpose(0, 2, 1))
    swaps[own[:, :, None] == own[:, None, :]] = np.inf
    return moves, swaps


def improve(fitness: PairwiseFitness, labels: np.ndarray, swaps_only: bool = False, steps: int = 200) -> np.ndarray:
    """Rows after repeated best moves or swaps, until none improves: local optima with the same number of groups."""
    labels = labels.copy()
    active = np.arange(len(labels))
    scale = 1e-12 * max(float(fitness.pairs.max()), 1e-300)
    heads = labels.shape[1]
    for _ in range(steps):
        rows = labels[active]
        moves, swaps = move_deltas(fitness, rows)
        groups = moves.shape[2]
        if swaps_only:
            moves[:] = np.inf
        flat = np.concatenate([moves.reshape(len(rows), -1), swaps.reshape(len(rows), -1)], axis=1)
        choice = flat.argmin(1)
        better = flat[np.arange(len(rows)), choice] < -scale
        if not better.any():
            break
        active, rows, choice = active[better], rows[better], choice[better]
        index = np.arange(len(rows))
        is_move = choice < heads * groups
        head, group = np.divmod(choice, groups)
        a, b = np.divmod(choice - heads * groups, heads)
        changed = rows.copy()
        changed[index[is_move], head[is_move]] = group[is_move]
        s = ~is_move
        changed[index[s], a[s]], changed[index[s], b[s]] = rows[s, b[s]], rows[s, a[s]]
        labels[active] = changed
    return canonical_labels(labels)


def agglomerate(fitness: PairwiseFitness) -> np.ndarray:
    """[G - 1, G]: partitions by greedy joining (Ward's rule), from single heads, always the two groups of least cost;
    one row for each count below G."""
    heads, by_size = fitness.heads, fitness.by_size
    labels = np.arange(heads)
    rows = []
    for _ in range(heads - 1):
        groups = int(labels.max()) + 1
        member = (labels == np.arange(groups)[:, None]).astype(np.float64)  # [groups, G]
        between = member @ fitness.pairs @ member.T
        size, weight = member.sum(1).astype(int), np.diag(between)
        joined = (weight[:, None] + weight + 2 * between) * by_size[np.minimum(size[:, None] + size, heads)]
        delta = joined - (weight * by_size[size])[:, None] - weight * by_size[size]
        delta[np.tril_indices(groups)] = np.inf
        a, b = np.unravel_index(delta.argmin(), delta.shape)
        labels = canonical_labels(np.where(labels == b, a, labels)).astype(np.int64)
        rows.append(labels)
    return canonical_labels(np.array(rows))


def two_point(rng: np.random.Generator, first: np.ndarray, second: np.ndarray, probability: float = 0.9) -> np.ndarray:
    """Crossover of the plain genetic algorithm on label vectors; it ignores the meaning of labels."""
    n, heads = first.shape
    cut = np.sort(rng.integers(0, heads + 1, (n, 2)), axis=1)
    swap = (np.arange(heads) >= cut[:, :1]) & (np.arange(heads) < cut[:, 1:]) & (rng.random((n, 1)) < probability)
    return canonical_labels(np.where(swap, second, first))


def reset(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Mutation of the plain genetic algorithm: each label becomes a random one with probability 1 / G."""
    chosen = rng.random(labels.shape) < 1 / labels.shape[1]
    return canonical_labels(np.where(chosen, rng.integers(0, labels.shape[1], labels.shape), labels))
