"""AsymGQA's searches (arXiv 2406.14963): random walks among groupings, guided by which heads are nearest.

Symmetric: groups of equal size, from a random start; a random head changes places so that it joins the group of one of its 3 nearest heads; kept
if better, else with probability 0.1; with probability 0.1 the walk starts anew. Asymmetric: the same with moves, so that sizes change. Nearest
by the fitness's distances: with `--fitness activation` the paper's, 1 - cosine of outputs on text, with `weight` of weights.

A step is judged by the fitness (fast), or by the loss of the merged model on calibration text held out from everything else (slow; the paper
takes validation accuracy on the task): layers before have their groupings of the same count, layers behind are as they came.

The authors' released code swaps a head with its nearest one, so that the two never meet, and damages its distances as it goes; here the
head takes the place of another member of that group, and distances stay.
"""

import numpy as np

from fitness import LayerFitness
from grouper.layout import canonical_labels
from search.methods.candidate import Candidate, best_per_count
from search.methods.task import Judge
from search.optimise.nsga2 import Report, Settings
from search.optimise.operators import random_labels

NEAREST = 3
ACCEPT_WORSE = RESTART = 0.1
WALKS = 8  # side by side for each number of KV heads
JUDGED_WALKS, JUDGED_STEPS = 1, 10  # where the merged model's loss judges, as in the released code


def asymgqa_sym(
    fitness: LayerFitness,
    rng: np.random.Generator,
    settings: Settings,
    report: Report | None = None,
    judge: Judge | None = None,
) -> list[Candidate]:
    """Equal groups, for every number of KV heads that divides the heads."""
    heads = fitness.heads
    return [_walk(fitness, rng, settings, k, True, report, judge) for k in range(1, heads) if heads % k == 0]


def asymgqa(
    fitness: LayerFitness,
    rng: np.random.Generator,
    settings: Settings,
    report: Report | None = None,
    judge: Judge | None = None,
) -> list[Candidate]:
    """Groups of any size, for every number of KV heads."""
    return [_walk(fitness, rng, settings, k, False, report, judge) for k in range(1, fitness.heads)]


def _walk(
    fitness, rng, settings: Settings, kv_heads: int, equal: bool, report: Report | None, judge: Judge | None
) -> Candidate:
    heads = fitness.heads
    distance = fitness.surrogate.distance + np.where(np.eye(heads, dtype=bool), np.inf, 0)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : min(NEAREST, heads - 1)]
    walks, steps = (
        (WALKS, settings.generations) if judge is None else (JUDGED_WALKS, min(JUDGED_STEPS, settings.generations))
    )
    scored = judge or fitness.errors

    def start(n: int) -> np.ndarray:
        if equal:
            return canonical_labels(rng.permuted(np.tile(np.arange(heads) // (heads // kv_heads), (n, 1)), axis=1))
        return random_labels(rng, n, heads, np.full(n, kv_heads))

    rows = start(walks)
    scores = scored(rows)
    found = [Candidate(row, float(score)) for row, score in zip(rows, scores)]
    for step in range(steps if kv_heads > 1 else 0):
        tried = rows.copy()
        for row in tried:
            _step(row, int(rng.integers(heads)), nearest, rng, equal)
        anew = rng.random(walks) < RESTART
        if anew.any():
            tried[anew] = start(int(anew.sum()))
        tried_scores = scored(tried)
        found += [Candidate(row, float(score)) for row, score in zip(tried, tried_scores)]
        keep = (tried_scores < scores) | anew | (rng.random(walks) < ACCEPT_WORSE)
        rows[keep], scores[keep] = tried[keep], tried_scores[keep]
        if report:
            report(step + 1, float(scores.min()))
    best = best_per_count(found)[kv_heads].labels
    return Candidate(best, float(fitness.errors(best[None])[0]))


def _step(row: np.ndarray, head: int, nearest: np.ndarray, rng: np.random.Generator, equal: bool) -> None:
    """Bring `head` into the group of one of its nearest heads: by trading places with another member of it, or by moving."""
    options = [other for other in nearest[head].tolist() if row[other] != row[head]]
    if not options:
        return
    partner = options[int(rng.integers(len(options)))]
    if not equal:
        if (row == row[head]).sum() > 1:  # the last head of a group stays, or there would be one group fewer
            row[head] = row[partner]
        return
    others = [h for h in np.flatnonzero(row == row[partner]).tolist() if h != partner]
    if others:
        traded = others[int(rng.integers(len(others)))]
        row[head], row[traded] = row[traded], row[head]
