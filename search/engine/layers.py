"""Stage 1: every method on every layer. A layer is saved as soon as it is done, so that a search that was killed
resumes there."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fitness import FITNESSES, Fitness
from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments, MeasuredInputs
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.compress import Regrouper
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.layout import Grouping, LayerLayout
from grouper.machine import Tell, no_message
from grouper.progress import Progress, duration, no_progress
from grouper.threads import one_thread
from search.engine.processes import workers
from search.methods.candidate import Candidate
from search.methods.loss_oracle import MergedLoss
from search.methods.method import Method
from search.methods.task import LayerTask
from search.options import SearchOptions
from search.runs.folder import RunFolder

Found = dict[str, list[Candidate]]  # by method


@dataclass(frozen=True)
class LayerSearch:
    """Search of any layer of one model, as a worker process runs it. The call with a layer's number reads its attention
    weights, makes its tables, runs every method, and saves the methods' progress in `folder`. moments: file with the
    moments of the layer's inputs, if there is calibration text."""

    checkpoint: Checkpoint
    architecture: Architecture
    fitness: Fitness
    methods: list[Method]
    options: SearchOptions
    device: str
    folder: RunFolder | None = None

    def __call__(self, layer: int, moments: Path | None = None, report: Progress = no_progress) -> Found:
        with one_thread():
            inputs = None if moments is None else MeasuredInputs.load(moments)
            return self.search(self.task(layer, inputs), layer, report)

    @property
    def needs_moments(self) -> bool:
        return self.fitness.needs_moments or any(m.needs_weights for m in self.methods)

    def task(self, layer: int, inputs: InputMoments | None = None) -> LayerTask:
        """The search task of one layer: its tables, and what its methods need besides. inputs: moments of the layer's
        inputs; without them, those that the norm's weights imply are used where needed."""

        def read() -> tuple[Attention, InputMoments]:
            known = self.architecture.input_moments(self.checkpoint, layer) if inputs is None else inputs
            return self.architecture.read(self.checkpoint, layer), known

        attention, known = read() if self.needs_moments else (self.architecture.read(self.checkpoint, layer), inputs)
        tables = self.fitness.tables(attention, known, device=self.device)
        task = LayerTask(self.fitness, tables, read, attention.queries_per_kv_head)
        for part in sorted({part for m in self.methods for part in m.parts}):
            if part in ("k", "v"):
                task.parts[part] = self.fitness.tables(attention, known, part=part, device=self.device)
            elif part in ("q", "pairs"):  # the pairwise form, whatever the fitness is
                task.parts[part] = self.fitness.pairs(attention, known, "q" if part == "q" else "kv")
            else:
                raise GrouperError(f"a method asks for tables of {part!r}: expected k, v, q or pairs")
        return task

    def search(self, task: LayerTask, layer: int, report: Progress = no_progress) -> Found:
        """Run every method on one layer. Each has its own random generator, from the seed, the layer and the method's
        name, so results do not depend on the order of methods."""
        found, notes = {}, []
        for method in self.methods:
            rng = np.random.default_rng([self.options.seed, layer, zlib.crc32(method.name.encode())])
            tell = lambda done, total, note, name=method.name: report(done, total, f"{name}, {note}")  # noqa: E731
            found[method.name] = with_k_errors(task, method.search_layer(task, rng, self.options.genetic, tell))
            notes += [(method.name, *note) for note in task.progress]
            task.progress.clear()
        if self.folder:
            self.folder.write_progress(layer, notes)
        return found


def with_k_errors(task: LayerTask, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates with K's part of their errors, for layouts in which every query head follows its KV head."""
    n, of_k = task.queries_per_kv_head, task.tables.of_k

    def follows(layout: LayerLayout) -> bool:
        return layout.q is None and Grouping.from_labels(layout.k.labels.tolist(), n) == layout.k

    places = [i for i, c in enumerate(candidates) if follows(c.layout)]
    if of_k is None or not places:
        return candidates
    errors = of_k.errors(np.stack([candidates[i].layout.k.labels for i in places])).tolist()
    found = dict(zip(places, errors))
    return [replace(c, k_error=found.get(i)) for i, c in enumerate(candidates)]


def search_layers(
    folder: RunFolder,
    regrouper: Regrouper,
    options: SearchOptions,
    methods: list[Method],
    jobs: int = 1,
    progress: Progress = no_progress,
    tell: Tell = no_message,
) -> list[Found]:
    """Groupings that each method found, for each searched layer; finished layers are read from the run. jobs: number of
    layers searched in parallel, each by a process that reads the layer, makes its tables and searches. Memory holds
    only the tables of layers that are being searched. With several ranks, each takes every n-th layer."""
    a, ranks = regrouper.architecture, regrouper.ranks
    layers = options.searched(a)
    read = ranks.first_does(lambda: [folder.read_layer(i, a.query_heads, a.kv_heads) for i in layers])
    found = {layer: of_layer for layer, of_layer in zip(layers, read) if of_layer is not None}
    todo = [layer for layer in layers if layer not in found]
    if not todo:
        return [found[layer] for layer in layers]
    fitness = FITNESSES.configured(options.set)[options.fitness]
    work = LayerSearch(regrouper.checkpoint, a, fitness, methods, options, regrouper.device, folder)

    def keep(layer: int, of_layer: Found, quietly: bool = False) -> None:
        found[layer] = of_layer
        folder.write_layer(layer, of_layer)
        if quietly:
            return
        new = len(found) - len(layers) + len(todo)
        done = min(len(layers), len(layers) - len(todo) + ranks.size * new)
        progress(done, len(layers), f"{a.name_of(layer)} is done")

    if options.acceptance == "loss" and any(m.judged for m in methods):
        judge = MergedLoss(regrouper) if ranks.first else None
        if judge:
            tell(_time_of(judge, work, len(todo)))
        regrouper.kept_moments(progress)
        if judge:
            _judged_in_turn(work, judge, found, todo, keep, progress)
    else:
        with workers(min(jobs, len(ranks.share(todo))), work.device) as pool:  # workers start meanwhile
            side = _SideBySide(work, ranks.share(todo), pool, keep)
            if work.needs_moments and regrouper.calibration is not None:
                # the cores are idle while a GPU is calibrated, and so is its memory if the model is streamed
                early = "cuda" in work.device and regrouper.memory == 0
                kept = regrouper.kept_moments(progress, side.begin if early else lambda layer, path: None)
                side.moments = {layer: kept.path(layer) for layer in ranks.share(todo)}
            regrouper.release()  # the model is not needed any more
            side.finish(found, progress)
    for of_rank in ranks.gather(found):
        found |= of_rank
    return [found[layer] for layer in layers]


class _SideBySide:
    """Layers searched by worker processes, or by this process if there are none. keep: called for each finished layer
    with its number, its groupings, and whether to print no progress. moments: by layer, the file with its moments."""

    def __init__(
        self,
        work: LayerSearch,
        layers: Sequence[int],
        pool: ProcessPoolExecutor | None,
        keep: Callable[..., None],
    ):
        self.work, self.layers, self.pool, self.keep = work, layers, pool, keep
        self.moments: dict[int, Path] = {}
        self._running: dict[Future, int] = {}
        self._begun: set[int] = set()
        self._killed: BrokenProcessPool | None = None

    def begin(self, layer: int, moments: Path | None) -> None:
        """Start searching this layer before calibration has finished, if it belongs to this rank. Finished layers are
        saved without a progress message, because the bar shows calibration."""
        if self.pool is not None and layer in self.layers and layer not in self._begun:
            self._begun.add(layer)
            try:
                self._running[self.pool.submit(self.work, layer, moments)] = layer
            except BrokenProcessPool as error:
                self._killed = error
        self._keep_those((done for done in list(self._running) if done.done()), quietly=True)

    def finish(self, found: dict[int, Found], progress: Progress) -> None:
        for layer in self.layers:
            moments = self.moments.get(layer)
            if self.pool is None:
                self.keep(layer, self.work(layer, moments, _reporting(found, self.work, layer, progress)))
            else:
                self.begin(layer, moments)
        self._keep_those(as_completed(list(self._running)))

    def _keep_those(self, done: Iterable[Future], quietly: bool = False) -> None:
        """Save finished layers. Raises BrokenProcessPool afterwards if a process was killed."""
        for future in done:
            layer = self._running.pop(future)
            try:
                self.keep(layer, future.result(), quietly)
            except BrokenProcessPool as error:
                self._killed = error
        if self._killed:
            raise self._killed


def _judged_in_turn(
    work: LayerSearch,
    judge: MergedLoss,
    found: dict[int, Found],
    todo: list[int],
    keep: Callable[[int, Found], None],
    progress: Progress,
) -> None:
    """Search layer after layer, with steps judged by the merged model's loss, which depends on the layers before."""
    with judge:
        for layer in todo:
            task = work.task(layer, judge.regrouper.moments_of(layer))
            judged = [m.name for m in work.methods if m.judged]
            task.judges = {name: judge.judge(layer, [found[i][name] for i in range(layer)]) for name in judged}
            keep(layer, work.search(task, layer, _reporting(found, work, layer, progress)))


def _time_of(judge: MergedLoss, work: LayerSearch, layers: int) -> str:
    """Message with the estimated time for judging the steps of this many layers."""
    each = [m.judged_groupings(work.architecture.kv_heads, work.options.genetic) for m in work.methods if m.judged]
    count, seconds = layers * sum(each), judge.seconds()
    return f"judging {count:,} groupings by the model's loss, {seconds:.1f} s each: about {duration(count * seconds)}"


def _reporting(found: dict[int, Found], work: LayerSearch, layer: int, progress: Progress) -> Progress:
    """Progress callback for one layer's search; the bar counts finished layers."""
    name, layers = work.architecture.name_of(layer), len(work.options.searched(work.architecture))

    def report(_done: int, _total: int, note: str) -> None:
        progress(len(found), layers, f"{name}, {note}")

    return report
