"""GQKVA (arXiv 2311.03426): query heads are grouped as well as KV heads, and every attention output pairs a query group
with a KV group.

With H outputs, H = g_q g_kv and every pair occurs once. Heads lie on a grid: a row shares a query projection, a column
shares a KV head. The extremes are MQA (one column) and MKVA (one row: one query, every KV head). Two more forms: GKVA
(grouped queries, every head its own KV head), which saves weights and no cache, and MQKVA (one query and one KV head,
so that all outputs are equal). The paper trains such models from scratch with neighbouring heads. Here the grid is
searched by NSGA-II with best swaps, on the sum of both errors.
"""

from dataclasses import dataclass

import numpy as np
from deap import base

from fitness import PairwiseFitness
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.layout import Grouping, LayerLayout
from grouper.progress import Progress, no_progress
from search.methods.candidate import Candidate
from search.methods.method import Method
from search.methods.qcqa import equal_sizes
from search.methods.task import LayerTask
from search.optimise.nsga2 import evolve
from search.optimise.operators import move_deltas
from search.options import GeneticOptions


@dataclass(frozen=True)
class GQKVA(Method):
    name: str = "gqkva"
    paper = "GQKVA, arXiv 2311.03426"
    budgets = False
    needs_weights = True
    parts = ("q", "pairs")
    aligned = True

    def check(self, architecture: Architecture) -> None:
        a = architecture
        if a.kv_heads != a.query_heads:
            has = f"this one has {a.kv_heads} KV heads for {a.query_heads} query heads"
            raise GrouperError(f"the {self.name} method takes multi-head models; {has}")

    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """The grid of every divisor of H, from one row (MKVA) to one column (MQA); then GKVA for every divisor between;
        then MQKVA. The order is the same in every layer, because candidates of one position make one layout."""
        query_heads = task.attention.query_heads
        queries, kv = (task.parts[part].surrogate for part in self.parts)  # for pairwise errors, the tables themselves
        divisors = [k for k in range(1, query_heads + 1) if query_heads % k == 0]
        layouts = []
        for columns in reversed(divisors):
            place = best_grid(queries, kv, columns, rng, genetic, report)
            layouts.append(grid_layout(place // columns, place % columns))
        grouped = {p.groups: p.labels for p in equal_sizes(queries, rng, genetic, report)}
        layouts += [grid_layout(grouped[rows], np.arange(query_heads)) for rows in divisors[1:-1]]
        layouts.append(grid_layout(np.zeros(query_heads, int), np.zeros(query_heads, int)))
        return [Candidate(layout, task.layout_error(layout)) for layout in layouts]


def grid_layout(query_labels: np.ndarray, kv_labels: np.ndarray) -> LayerLayout:
    """Layout of a layer from the query group [H] and the KV group [H] of each attention output."""
    kv = Grouping.from_labels(kv_labels.tolist())
    return LayerLayout(kv, kv, Grouping.from_labels(query_labels.tolist()))


def best_grid(
    queries: PairwiseFitness,
    kv: PairwiseFitness,
    columns: int,
    rng: np.random.Generator,
    genetic: GeneticOptions,
    report: Progress = no_progress,
) -> np.ndarray:
    """[H]: place of each head on a grid of H / columns rows; row place // columns, column place % columns."""
    query_heads = kv.heads
    if columns in (1, query_heads):
        return np.arange(query_heads)

    def evaluate(places: np.ndarray) -> np.ndarray:
        errors = queries.errors(places // columns) + kv.errors(places % columns)
        return np.stack([np.full(len(places), float(columns)), errors], axis=1)

    def best_of(places: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
        i = int(scores[:, 1].argmin())
        return float(scores[i, 1]), places[i]

    def swap(places: np.ndarray) -> np.ndarray:
        out = places.copy()
        rows = np.arange(len(places))
        a, b = rng.integers(0, query_heads, (2, len(places)))
        out[rows, a], out[rows, b] = places[rows, b], places[rows, a]
        return out

    toolbox = base.Toolbox()
    toolbox.register("evaluate", evaluate)
    toolbox.register("mate", grid_crossover, rng)
    toolbox.register("mutate", swap)
    if genetic.memetic:
        toolbox.register("improve", lambda places: improved_grids(queries, kv, columns, places))
    start = rng.permuted(np.tile(np.arange(query_heads), (genetic.population, 1)), axis=1)
    each = (best_of(*generation) for generation in evolve(toolbox, start, genetic, rng, report))
    return min(each, key=lambda scored: scored[0])[1]


def grid_crossover(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Places [n, H] of child grids: a random half of the heads keep the first parent's places, and the rest are filled
    in the second parent's order."""
    query_heads = first.shape[1]
    chosen = rng.random(first.shape) < 0.5
    mine = np.sort(np.where(chosen, first, query_heads), axis=1)  # places of the chosen heads, ascending
    # the chosen heads, in the second parent's order
    order = np.argsort(np.where(chosen, second, query_heads), axis=1, kind="stable")
    child = first.copy()
    index = np.arange(len(first))[:, None]
    child[index, order] = np.where(mine < query_heads, mine, np.take_along_axis(first, order, 1))
    return child


def improved_grids(
    queries: PairwiseFitness, kv: PairwiseFitness, columns: int, places: np.ndarray, steps: int = 200
) -> np.ndarray:
    """Grids after swapping, again and again, the two heads whose swap lowers the summed error most, until none does
    or the steps are done."""
    places = places.copy()
    scale = 1e-12 * max(float(queries.pairs.max()), float(kv.pairs.max()), 1e-300)
    active = np.arange(len(places))
    for _ in range(steps):
        rows = places[active]
        change = np.zeros((len(rows), kv.heads, kv.heads))
        for fitness, labels in ((queries, rows // columns), (kv, rows % columns)):
            swaps = move_deltas(fitness, labels)[1]
            change += np.where(np.isfinite(swaps), swaps, 0)  # 0 for two heads of one group
        flat = change.reshape(len(rows), -1)
        choice = flat.argmin(1)
        better = flat[np.arange(len(rows)), choice] < -scale
        if not better.any():
            break
        active, rows = active[better], rows[better]
        a, b = np.divmod(choice[better], kv.heads)
        index = np.arange(len(rows))
        changed = rows.copy()
        changed[index, a], changed[index, b] = rows[index, b], rows[index, a]
        places[active] = changed
    return places
