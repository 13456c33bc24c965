"""From what was found layer by layer to layouts of the whole model."""

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from grouper.architectures import Architecture
from grouper.layout import HeadLayout
from search.budget import binary_nsga2, knapsack
from search.candidate import Candidate, best_per_count
from search.methods import BASELINES, METHODS, ORIGINAL
from search.nsga2 import Settings
from search.pareto import Scored

if TYPE_CHECKING:
    from search.run import SearchOptions

PerLayer = list[dict[int, Candidate]]  # per layer: KV heads -> candidate


def assemble(found: list[dict[str, list[Candidate]]], architecture: Architecture, options: "SearchOptions") -> list[Scored]:
    """Every layout of a run, the original first, then by falling KV bytes. Equal layouts once, under the first method
    that has them; baselines stand beside, for comparison.

    Baselines and methods each give, for every uniform KV-head count, the best any-size and the best equal-size grouping in all layers;
    methods also what stage 2 makes of them.
    """
    alone = Candidate(np.arange(architecture.kv_heads), 0.0)
    scored: dict[tuple[bool, HeadLayout], Scored] = {}

    def add(method: str, picks: Iterable[Candidate]) -> None:
        picks = list(picks)
        layout = HeadLayout.from_labels([c.labels for c in picks], architecture.query_heads, architecture.head_dim)
        scored.setdefault((method in BASELINES, layout), Scored(layout, method, float(sum(c.error for c in picks))))

    add(ORIGINAL, [alone] * len(found))
    counts = architecture.uniform_counts(options.kv_heads_multiple_of)
    for name in dict.fromkeys([*BASELINES, *options.method]):
        every = [[c for c in layer[name] if c.kv_heads in counts] for layer in found]
        any_size = [best_per_count(candidates) for candidates in every]
        equal = [best_per_count([c for c in candidates if c.equal_groups]) for candidates in every]
        for per_layer in (equal, any_size):
            for k in counts:
                if all(k in layer for layer in per_layer):
                    add(name, [layer[k] for layer in per_layer])
        if METHODS[name].budgets and options.stage2 != "none":
            with_original = [{**layer, architecture.kv_heads: alone} for layer in any_size]
            for choice in _budgets(with_original, architecture, options, name):
                add(name, [layer[k] for layer, k in zip(with_original, choice)])
    original, *rest = scored.values()
    return [original, *sorted(rest, key=lambda s: (-s.layout.cached_heads, s.error, s.method))]


def _budgets(per_layer: PerLayer, architecture: Architecture, options: "SearchOptions", name: str) -> list[tuple[int, ...]]:
    errors = [{k: c.error for k, c in layer.items()} for layer in per_layer]
    if options.stage2 == "knapsack":
        return knapsack(errors)
    rng = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
    settings = Settings(options.population, options.generations, patience=0, memetic=False)
    choices: dict[tuple[int, ...], None] = {}
    for k in architecture.uniform_counts(options.kv_heads_multiple_of):
        if all(k in layer for layer in per_layer):
            choices |= dict.fromkeys(binary_nsga2(errors, [k] * len(errors), architecture.kv_heads, rng, settings))
    return list(choices)
