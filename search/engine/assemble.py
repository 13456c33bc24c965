"""From what was found layer by layer to layouts of the whole model."""

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

PerLayer = list[dict[int, Candidate]]  # per layer: K heads plus V heads -> candidate


class Layouts:
    """Layouts as they come, equal ones once, under the first method that has them; baselines stand beside, for
    comparison."""

    def __init__(self, architecture: Architecture, options: SearchOptions):
        self.architecture, self.searched = architecture, options.searched(architecture)
        self.own_merge = MERGES[FITNESSES[options.fitness].own_merge]
        self.scored: dict[tuple[bool, HeadLayout], Scored] = {}

    def add(self, method: str, picks: Iterable[Candidate], baseline: bool = False) -> None:
        """picks: one for each layer that is searched; the others stay as they came."""
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
    """Every layout of a run, the original first, then by falling KV bytes. found: of the layers that are searched.

    Baselines and methods each give, for every uniform KV-head count, the best any-size and the best equal-size grouping
    in all layers; methods also what stage 2 makes of them.
    """
    layouts = Layouts(architecture, options)
    alone = Candidate(architecture.whole_layer, 0.0)
    layouts.add(ORIGINAL, [alone] * len(found))
    counts = architecture.uniform_counts(options.kv_heads_multiple_of)
    allowed = {*counts, architecture.kv_heads}
    for method in sorted(methods, key=lambda m: not m.baseline):  # baselines first, else in their order
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
    """What stage 2 chooses: per layer, K heads plus V heads."""
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
