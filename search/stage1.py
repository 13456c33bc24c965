"""Stage 1: every method on every layer, written when a layer is done, so that a killed run goes on where it stopped."""

import zlib
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from multiprocessing import get_context

import numpy as np

from fitness import FITNESSES, Fitness
from grouper.progress import Progress, untold
from grouper.regroup import Regrouper
from search.methods.candidate import Candidate
from search.methods.judge import MergedLoss
from search.methods.method import Method
from search.methods.task import LayerTask
from search.optimise.nsga2 import Report, unreported
from search.options import SearchOptions
from search.run_folder import RunFolder

Found = dict[str, list[Candidate]]  # by method


def search_layers(
    folder: RunFolder,
    regrouper: Regrouper,
    options: SearchOptions,
    methods: list[Method],
    jobs: int = 1,
    progress: Progress = untold,
) -> list[Found]:
    """Per layer, what each method found; read back where the layer is done. jobs: layers searched at a time, by
    processes of their own; no more than one layer's tables wait beside theirs."""
    a = regrouper.architecture
    found = [folder.read_layer(layer, a.queries_per_kv_head) for layer in range(a.layers)]
    todo = [layer for layer, done in enumerate(found) if done is None]

    def keep(layer: int, of_layer: Found) -> None:
        found[layer] = of_layer
        folder.write_layer(layer, of_layer)
        progress(sum(f is not None for f in found), a.layers, f"layer {layer} is done")

    if options.acceptance == "loss" and any(m.judged for m in methods):
        with MergedLoss(regrouper) as judge:
            for layer in todo:  # a layer is judged with those before it, so they come in turn
                task = layer_task(regrouper, layer, options, methods)
                judged = [m.name for m in methods if m.judged]
                task.judges = {name: judge.judge(layer, [found[i][name] for i in range(layer)]) for name in judged}
                keep(layer, search_layer(task, layer, options, methods, _reporting(found, layer, progress)))
        return found
    with ProcessPoolExecutor(jobs, get_context("spawn")) if jobs > 1 and len(todo) > 1 else nullcontext() as pool:
        running: dict[Future, int] = {}
        for layer in todo:
            task = layer_task(regrouper, layer, options, methods)
            if pool is None:
                keep(layer, search_layer(task, layer, options, methods, _reporting(found, layer, progress)))
                continue
            running[pool.submit(search_layer, task, layer, options, methods)] = layer
            if len(running) > jobs:
                _collect(running, keep)
        while running:
            _collect(running, keep)
    return found


def _collect(running: dict[Future, int], keep) -> None:
    """Wait until a layer is done."""
    for done in wait(running, return_when=FIRST_COMPLETED).done:
        keep(running.pop(done), done.result())


def _reporting(found: list[Found | None], layer: int, progress: Progress):
    """What tells of one layer: called with method, generation and best error."""
    done = sum(f is not None for f in found)

    def report(method: str, generation: int, best: float) -> None:
        note = f"layer {layer}, {method}, generation {generation}, best error {best:.4g}"
        progress(done, len(found), note)

    return report


def layer_task(regrouper: Regrouper, layer: int, options: SearchOptions, methods: list[Method]) -> LayerTask:
    """The tables of one layer, and what its methods need besides: reads its attention weights and norm, nothing
    else."""
    fitness: Fitness = FITNESSES.configured(options.set)[options.fitness]
    attention = regrouper.architecture.read(regrouper.checkpoint, layer)
    needs_weights = any(m.needs_weights for m in methods)
    inputs = regrouper.moments[layer] if fitness.needs_moments or needs_weights else None
    tables = fitness.tables(attention, inputs, device=regrouper.device)
    task = LayerTask(fitness, tables, attention.queries_per_kv_head)
    for part in {part for m in methods for part in m.parts}:
        if part in ("k", "v"):
            task.parts[part] = fitness.tables(attention, inputs, part=part, device=regrouper.device)
        else:  # what pairs of heads say, whatever the fitness
            task.parts[part] = fitness.pairs(attention, inputs, "q" if part == "q" else "kv")
    if needs_weights:
        task.attention, task.inputs = attention, inputs
    return task


def search_layer(task: LayerTask, layer: int, options: SearchOptions, methods: list[Method], report=None) -> Found:
    """Every method on one layer. Each has chance of its own, from the seed, the layer and its name: nothing depends on
    what ran before."""
    found = {}
    for method in methods:
        rng = np.random.default_rng([options.seed, layer, zlib.crc32(method.name.encode())])
        tell: Report = unreported
        if report is not None:
            tell = lambda generation, best, name=method.name: report(name, generation, best)  # noqa: E731
        found[method.name] = method.search_layer(task, rng, options.genetic, tell)
    return found
