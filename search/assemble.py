"""From what was found layer by layer to layouts of the whole model."""

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from fitness import OWN_MERGE
from grouper.layout import HeadLayout
from grouper.model.architecture import Architecture
from search.methods.candidate import Candidate, best_per_size
from search.methods.registry import BASELINES, METHODS, ORIGINAL
from search.optimise.budget import binary_nsga2, knapsack
from search.optimise.nsga2 import Settings
from search.pareto import Scored

if TYPE_CHECKING:
    from search.run import SearchOptions

PerLayer = list[dict[int, Candidate]]  # per layer: K heads plus V heads -> candidate


def assemble(
    found: list[dict[str, list[Candidate]]], architecture: Architecture, options: "SearchOptions"
) -> list[Scored]:
    """Every layout of a run, the original first, then by falling KV bytes. Equal layouts once, under the first method
    that has them; baselines stand beside, for comparison.

    Baselines and methods each give, for every uniform KV-head count, the best any-size and the best equal-size grouping in all layers;
    methods also what stage 2 makes of them.
    """
    alone = Candidate(np.arange(architecture.kv_heads), 0.0)
    scored: dict[tuple[bool, HeadLayout], Scored] = {}

    queries, own_merge = architecture.queries_per_kv_head, OWN_MERGE[options.fitness]

    def add(method: str, picks: Iterable[Candidate]) -> None:
        picks = list(picks)
        layers = tuple(c.layer_layout(queries) for c in picks)
        layout = HeadLayout(layers, architecture.query_heads, architecture.kv_heads, architecture.head_dim)
        merge = "mean" if layout.only_mean else own_merge
        scored.setdefault(
            (method in BASELINES, layout), Scored(layout, method, float(sum(c.error for c in picks)), merge)
        )

    add(ORIGINAL, [alone] * len(found))
    counts = architecture.uniform_counts(options.kv_heads_multiple_of)
    allowed = {*counts, architecture.kv_heads}
    for name in dict.fromkeys([*BASELINES, *options.method]):
        every = [[c for c in layer[name] if _counts(c) <= allowed] for layer in found]
        if METHODS[name].aligned:
            for picks in zip(*every):
                add(name, picks)
            continue
        any_size = [best_per_size(candidates) for candidates in every]
        equal = [best_per_size([c for c in candidates if c.equal_groups]) for candidates in every]
        for per_layer in (equal, any_size):
            for k in counts:
                if all(2 * k in layer for layer in per_layer):
                    add(name, [layer[2 * k] for layer in per_layer])
        if METHODS[name].budgets and options.stage2 != "none":
            with_original = [{**layer, 2 * architecture.kv_heads: alone} for layer in any_size]
            for choice in _budgets(with_original, architecture, options, name):
                add(name, [layer[size] for layer, size in zip(with_original, choice)])
    original, *rest = scored.values()
    return [original, *sorted(rest, key=lambda s: (-s.layout.cached_heads, s.error, s.method))]


def _counts(candidate: Candidate) -> set[int]:
    """Its numbers of K and V heads."""
    layout = candidate.layout
    return {candidate.kv_heads} if layout is None else {layout.k.kv_heads, layout.v.kv_heads}


def _budgets(
    per_layer: PerLayer, architecture: Architecture, options: "SearchOptions", name: str
) -> list[tuple[int, ...]]:
    errors = [{size: c.error for size, c in layer.items()} for layer in per_layer]
    if options.stage2 == "knapsack":
        return knapsack(errors)
    rng = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
    settings = Settings(options.population, options.generations, patience=0, memetic=False)
    choices: dict[tuple[int, ...], None] = {}
    for k in architecture.uniform_counts(options.kv_heads_multiple_of):
        if all(2 * k in layer for layer in per_layer):
            choices |= dict.fromkeys(
                binary_nsga2(errors, [2 * k] * len(errors), 2 * architecture.kv_heads, rng, settings)
            )
    return list(choices)
