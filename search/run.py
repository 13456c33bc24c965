"""One search: layer by layer, then budgets over layers, written so that a killed run goes on where it stopped."""

import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from fitness import FITNESSES
from grouper.calibration.text import TextSource, digest, is_demo
from grouper.errors import GrouperError
from grouper.layout import bytes_of
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.outputs import write_text
from grouper.regroup import TOKENS, WINDOW, Calibration, Regrouper
from search.assemble import assemble
from search.methods.candidate import Candidate
from search.methods.judge import MergedLoss
from search.methods.registry import BASELINES, JUDGED, METHODS, check_methods
from search.methods.task import LayerTask
from search.optimise.nsga2 import Settings
from search.pareto import ParetoFront
from search.picture import draw
from search.run_folder import RunFolder

Progress = Callable[[int, int, str, int, float], None]  # layer, layers, method, generation, best error


@dataclass(frozen=True)
class SearchOptions:
    """What a search may be told; the same words as on the command line.

    paper: "qcqa" for the published recipe: plain NSGA-II without local improvement, errors not normalised by layer, binary stage 2.
        "asymgqa": walks guided by activation distances and judged by the merged model's loss, Ward clustering, uniform counts, mean merge.
    acceptance: what judges a step of the asymgqa walks: "fitness" (fast) or "loss", the merged model's on held-out calibration text.
    stage2: "knapsack" (exact), "nsga2" (QCQA's) or "none": one count for all layers. text or dataset: what to calibrate on, `tokens` of
        it in windows of `window`; without either, inputs are taken to be what the norms' weights say.
    """

    method: tuple[str, ...] = ("qcqa-ac", "qcqa-ec")
    fitness: str = "spectral"
    stage2: str = "knapsack"
    paper: str | None = None
    kv_heads_multiple_of: int = 1
    kv_dtype: str = "bfloat16"
    population: int = 96
    generations: int = 60
    seed: int = 0
    text: str | None = None
    dataset: str | None = None
    tokens: int = TOKENS
    window: int = WINDOW
    acceptance: str = "fitness"

    @property
    def calibration(self) -> Calibration | None:
        if not self.text and not self.dataset:
            return None
        return Calibration(TextSource(self.text, self.dataset), self.tokens, window=self.window)

    def resolved(self) -> "SearchOptions":
        if self.paper not in (None, "qcqa", "asymgqa"):
            raise GrouperError(f"unknown paper {self.paper!r}: expected qcqa or asymgqa")
        if self.fitness not in FITNESSES:
            raise GrouperError(f"unknown fitness {self.fitness!r}: expected one of {', '.join(FITNESSES)}")
        if self.stage2 not in ("knapsack", "nsga2", "none"):
            raise GrouperError(f"unknown stage 2 {self.stage2!r}: expected knapsack, nsga2 or none")
        if self.acceptance not in ("fitness", "loss"):
            raise GrouperError(f"unknown acceptance {self.acceptance!r}: expected fitness or loss")
        if self.population < 4 or self.generations < 1:
            raise GrouperError(
                f"a population of {self.population} for {self.generations} generations: expected at least 4 and 1"
            )
        if self.seed < 0:
            raise GrouperError(f"seed {self.seed}: expected 0 or more")
        bytes_of(self.kv_dtype)
        if self.tokens < self.window or self.window < 2:
            raise GrouperError(
                f"{self.tokens} tokens in windows of {self.window}: expected at least one window of 2 tokens or more"
            )
        if self.text and not is_demo(self.text):
            self = replace(
                self, text=os.path.abspath(os.path.expanduser(self.text))
            )  # the run may be used from elsewhere
        method = tuple(dict.fromkeys(self.method))
        if self.paper == "qcqa":
            return replace(self, method=method, fitness="weight", stage2="nsga2")
        if self.paper == "asymgqa":
            methods = ("asymgqa", "asymgqa-sym", "ward")
            self = replace(self, method=methods, fitness="activation", stage2="none", acceptance="loss")
            method = methods
        if self.acceptance == "loss" and self.calibration is None:
            raise GrouperError("steps are judged by the merged model's loss on text: give --text or --dataset")
        if self.paper:
            return self
        if not any(METHODS[m].equal for m in method if m in METHODS):
            method += ("qcqa-ec",)  # a run always has the best equal-size layouts
        return replace(self, method=method)


def search(
    model: str | PathLike,
    output: str | PathLike,
    options: SearchOptions | None = None,
    *,
    revision: str | None = None,
    jobs: int = 1,
    device: str = "cpu",
    keep_calibration: str | PathLike | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
) -> ParetoFront:
    """Search groupings of `model`'s KV heads and write the run to the folder `output`.

    Resumes an earlier run of the same model and options in that folder, to the same files. Returns the front with all layouts.
    keep_calibration: a folder where what was calibrated is kept, and looked for, for this model, text and tokens.
    Raises GrouperError for what cannot be searched, before anything is written.
    """
    options = (options or SearchOptions()).resolved()
    checkpoint = Checkpoint.open(model, revision)
    architecture = Architecture.of(checkpoint.config)
    check(architecture, options)
    calibration = options.calibration
    if calibration and keep_calibration:
        calibration = replace(calibration, keep=Path(keep_calibration))
    regrouper = Regrouper(checkpoint.local() if calibration else checkpoint, calibration, device)
    text_digest, judge = None, None
    if calibration:
        text_digest = digest(
            regrouper.windows(options.tokens)
        )  # a text that is too short is refused before anything is written
        if options.acceptance == "loss":
            judge = MergedLoss(regrouper)
    settings = {
        **asdict(options), "model": checkpoint.place, "revision": revision, "fingerprint": checkpoint.fingerprint, "text_digest": text_digest,
        "versions": {p: installed(p) for p in ("kv-grouper", "torch", "numpy", "deap", "moocore")}, "jobs": jobs, "device": device,
        "command": command,
        "timings": {},
    }  # fmt: skip
    folder = RunFolder.start(Path(output), settings, overwrite)
    started = time.perf_counter()
    found = _stage1(folder, regrouper, options, jobs, progress, judge)
    stage1 = time.perf_counter() - started

    layouts = assemble(found, architecture, options)
    front = ParetoFront.of(layouts, options.kv_dtype)
    for number, scored in enumerate(layouts):
        path = folder.layout_path(number)
        text = scored.layout.to_json()
        if not path.is_file() or path.read_text() != text:
            write_text(path, text)
    if (folder.path / "pareto.csv").is_file() and folder.front().same_layouts(front):
        front = folder.front()  # an evaluated run stays so
    else:
        front.write(folder.path / "pareto.csv")
    draw(front, folder.path / "pareto.svg", f"{checkpoint.title}: KV cache against what it costs")
    settings["timings"] = {"stage1_s": round(stage1, 2), "total_s": round(time.perf_counter() - started, 2)}
    folder.write_settings(settings)
    return folder.front()


def installed(package: str) -> str:
    """Its version; a checkout on the path has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def check(architecture: Architecture, options: SearchOptions) -> None:
    """Raise GrouperError where this model has nothing to search under these options."""
    a, n = architecture, options.kv_heads_multiple_of
    if a.kv_heads == 1:
        raise GrouperError("the model has one KV head (it is MQA already): there is nothing left to group")
    if n < 1 or not a.uniform_counts(n):
        raise GrouperError(
            f"no KV-head count below the model's {a.kv_heads} is a multiple of {n}: --kv-heads-multiple-of can be 1 to {a.kv_heads - 1}"
        )
    check_methods(list(options.method), a, options.calibration is not None)


def _stage1(
    folder: RunFolder,
    regrouper: Regrouper,
    options: SearchOptions,
    jobs: int,
    progress: Progress | None,
    judge: MergedLoss | None,
) -> list[dict[str, list[Candidate]]]:
    """Per layer and method, the candidates; read back where the layer is done."""
    architecture = regrouper.architecture
    found: list[dict[str, list[Candidate]] | None] = [folder.read_layer(layer) for layer in range(architecture.layers)]
    todo = [layer for layer, done in enumerate(found) if done is None]

    def tasks() -> Iterator[tuple[int, LayerTask]]:
        for layer in todo:
            task = layer_task(regrouper, layer, options)
            if judge:  # a layer is judged with those before it, so they come in turn
                names = [name for name in options.method if name in JUDGED]
                task.judges = {name: judge.judge(layer, [found[i][name] for i in range(layer)]) for name in names}
            yield layer, task

    if jobs > 1 and len(todo) > 1 and not judge:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(search_layer, task, layer, options): layer for layer, task in tasks()}
            for done in as_completed(running):
                layer = running[done]
                found[layer] = done.result()
                folder.write_layer(layer, found[layer])
                if progress:
                    progress(layer, architecture.layers, "done", 0, 0.0)
    else:
        for layer, task in tasks():

            def report(method: str, generation: int, best: float, layer: int = layer) -> None:
                if progress:
                    progress(layer, architecture.layers, method, generation, best)

            found[layer] = search_layer(task, layer, options, report)
            folder.write_layer(layer, found[layer])
    return found


def layer_task(regrouper: Regrouper, layer: int, options: SearchOptions) -> LayerTask:
    """The tables of one layer, and what its methods need besides: reads its attention weights and norm, nothing else."""
    attention = regrouper.architecture.read(regrouper.checkpoint, layer)
    methods = [METHODS[name] for name in options.method]
    extra: dict[str, Any] = {"device": regrouper.device}
    if options.paper == "qcqa":
        extra["normalised"] = False
    weights = any(m.weights for m in methods)
    inputs = None if options.fitness == "weight" and not weights else regrouper.moments[layer]
    own = FITNESSES[options.fitness]
    task = LayerTask(options.fitness, own(attention, inputs, **extra), normalised=options.paper != "qcqa")
    for part in {part for m in methods for part in m.parts}:
        if part in ("k", "v"):
            task.parts[part] = own(attention, inputs, part=part, **extra)
        else:  # what pairs of heads say, whatever the fitness
            pairwise = FITNESSES["weight" if options.fitness == "weight" else "activation"]
            task.parts[part] = pairwise(attention, inputs, part="q" if part == "q" else "kv")
    if weights:
        task.attention, task.inputs = attention, inputs
    return task


def search_layer(
    task: LayerTask, layer: int, options: SearchOptions, report: Callable[[str, int, float], None] | None = None
) -> dict[str, list[Candidate]]:
    """Every method on one layer. Each has chance of its own, from the seed, the layer and its name: nothing depends on what ran before."""
    settings = Settings(options.population, options.generations)
    if options.paper:
        settings = replace(settings, memetic=False, patience=0)
    found = {}
    for name in dict.fromkeys([*options.method, *BASELINES]):
        rng = np.random.default_rng([options.seed, layer, zlib.crc32(name.encode())])
        tell = (lambda generation, best, name=name: report(name, generation, best)) if report else None
        found[name] = METHODS[name].search_layer(task, rng, settings, tell)
    return found
