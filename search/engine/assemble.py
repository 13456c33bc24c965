"""Assembly of whole-model layouts from the groupings found layer by layer."""

import zlib
from collections.abc import Iterable

import numpy as np

from fitness import FITNESSES
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.merging import MERGES, merge_for
from search.methods.candidate import Candidate, best_per_size
from search.methods.method import Method
from search.methods.registry import ORIGINAL
from search.optimise.budget import binary_nsga2, knapsack
from search.options import GeneticOptions, SearchOptions
from search.runs.pareto import Scored

PerLayer = list[dict[int, Candidate]]  # per layer: number of K heads plus V heads -> candidate


class Layouts:
    """Collection of layouts. Of equal layouts one is kept, under the first method that found it; baselines are kept
    apart, for comparison."""

    def __init__(self, architecture: Architecture, options: SearchOptions):
        self.architecture, self.searched = architecture, options.searched(architecture)
        self.own_merge = MERGES[FITNESSES[options.fitness].own_merge]
        self.scored: dict[tuple[bool, HeadLayout], Scored] = {}

    def add(self, method: str, picks: Iterable[Candidate], baseline: bool = False) -> None:
        """Add the layout made of these candidates. picks: one for each searched layer; the other layers keep all
        heads."""
        picks, a = list(picks), self.architecture
        chosen = dict(zip(self.searched, picks))
        layout = a.layout(chosen[i].layout if i in chosen else a.whole_layer for i in range(a.layers))
        before = self.scored.get((baseline, layout))
        if before is None:
            merge = merge_for(layout, self.own_merge).name
            self.scored[baseline, layout] = Scored(layout, method, float(sum(c.error for c in picks)), merge)
        elif method not in (before.method, *before.also_found_by) and before.method != ORIGINAL:
            before.also_found_by.append(method)


def assemble_layouts(
    found: list[dict[str, list[Candidate]]], architecture: Architecture, options: SearchOptions, methods: list[Method]
) -> list[Scored]:
    """All layouts of a run: the original first, then by falling KV bytes. found: groupings of the searched layers.

    For every uniform KV-head count, each method and baseline gives the best grouping of any sizes and the best of equal
    sizes in all layers. Methods also give the layouts that stage 2 makes of their groupings.
    """
    layouts = Layouts(architecture, options)
    alone = Candidate(architecture.whole_layer, 0.0)
    layouts.add(ORIGINAL, [alone] * len(found))
    counts = architecture.uniform_counts(options.kv_heads_multiple_of)
    allowed = {*counts, architecture.kv_heads}
    for method in sorted(methods, key=lambda m: not m.baseline):  # baselines first, the others in their order
        every = [[c for c in layer.get(method.name, []) if c.counts <= allowed] for layer in found]
        if method.aligned:
            for picks in zip(*every):
                layouts.add(method.name, picks)
            continue
        any_size = [best_per_size(candidates) for candidates in every]
        equal = [best_per_size([c for c in candidates if c.layout.equal_groups]) for candidates in every]
        for per_layer in (equal, any_size):
            for k in counts:
                if all(2 * k in layer for layer in per_layer):
                    layouts.add(method.name, [layer[2 * k] for layer in per_layer], method.baseline)
        if method.budgets and options.stage2 != "none":
            with_original = [{**layer, 2 * architecture.kv_heads: alone} for layer in any_size]
            for choice in budgets(with_original, architecture, options, method.name):
                layouts.add(method.name, [layer[size] for layer, size in zip(with_original, choice)])
    original, *rest = layouts.scored.values()
    return [original, *sorted(rest, key=lambda s: (-s.layout.cached_heads, s.error, s.method))]


def budgets(
    per_layer: PerLayer, architecture: Architecture, options: SearchOptions, method: str
) -> list[tuple[int, ...]]:
    """Choices of stage 2: for each of them, K heads plus V heads of every layer."""
    errors = [{size: c.error for size, c in layer.items()} for layer in per_layer]
    if options.stage2 == "knapsack":
        return knapsack(errors)
    rng = np.random.default_rng([options.seed, zlib.crc32(method.encode())])
    genetic = GeneticOptions(options.population, options.generations, patience=0, memetic=False)
    choices: dict[tuple[int, ...], None] = {}
    for k in architecture.uniform_counts(options.kv_heads_multiple_of):
        if all(2 * k in layer for layer in per_layer):
            chosen = [2 * k] * len(errors)
            choices |= dict.fromkeys(binary_nsga2(errors, chosen, 2 * architecture.kv_heads, rng, genetic))
    return list(choices)
