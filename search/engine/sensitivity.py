"""Sensitivity of each layer: the loss on held-out calibration text after only that layer was merged and briefly
refined. Budgets over layers then add up losses instead of errors.

For each layer the loss is measured at three KV-head counts: a half, a quarter and an eighth. Between and beyond these,
a straight line in logarithms converts errors to losses.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fitness import FITNESSES
from grouper.compress import Regrouper
from grouper.errors import GrouperError
from grouper.evaluation.perplexity import nll
from grouper.layout import HeadLayout
from grouper.merging import MERGES, merge_for
from grouper.progress import Progress, no_progress
from grouper.refinement.layer import LayerWorker
from grouper.refinement.options import RefineOptions
from grouper.refinement.sides import Sides
from grouper.running.in_memory import InMemoryModel
from grouper.schema import Row, damage_said, read_rows
from search.engine.layers import Found
from search.methods.candidate import Candidate, best_per_size
from search.runs.folder import RunFolder

FILE = "sensitivity.csv"
STEPS, TOKENS = 40, 8192  # for refining one layer
JUDGED = 8192  # tokens of held-out text for the loss
LEAST = 1e-5  # nats; smaller losses cannot be told from zero

Points = list[tuple[float, float]]  # (error, nats)


def scaled(
    found: list[Found], folder: RunFolder, regrouper: Regrouper, progress: Progress = no_progress
) -> list[Found]:
    """The same candidates, with errors converted to losses in nats. Measurements are kept in RUN/sensitivity.csv, so
    that a search that was killed resumes."""
    points = _read(folder)
    missing = [layer for layer in range(len(found)) if layer not in points]
    if missing:
        for layer, of_layer in measured(found, missing, folder, regrouper, progress):
            points[layer] = of_layer
            _write(folder, points)
    curves = [curve(points[layer]) for layer in range(len(found))]
    return [
        {name: [Candidate(c.layout, loss(c.error)) for c in candidates] for name, candidates in layer.items()}
        for layer, loss in zip(found, curves)
    ]


def curve(points: Points) -> Callable[[float], float]:
    """Loss as a rising function of error, with 0 at 0: linear in logarithms between the points, and extrapolated beyond
    them."""
    points = sorted((e, max(n, LEAST)) for e, n in points if e > 0)
    if not points:
        return lambda error: error
    x, y = (np.log([p[i] for p in points]) for i in (0, 1))
    y = np.maximum.accumulate(y)

    def loss(error: float) -> float:
        if error <= 0:
            return 0.0
        at = math.log(error)
        if len(x) == 1:
            return math.exp(y[0] + at - x[0])
        if x[0] <= at <= x[-1]:
            return float(math.exp(np.interp(at, x, y)))
        near, far = (0, 1) if at < x[0] else (-1, -2)
        slope = max((y[near] - y[far]) / (x[near] - x[far]), 1e-3) if x[near] != x[far] else 1.0
        return math.exp(min(y[near] + slope * (at - x[near]), 50.0))

    return loss


def measured(
    found: list[Found], layers: list[int], folder: RunFolder, regrouper: Regrouper, progress: Progress
) -> Iterator[tuple[int, Points]]:
    """(layer, points) for each of these layers, in order. Raises GrouperError for a streamed model."""
    model, options = regrouper.model, folder.settings.options
    if not isinstance(model, InMemoryModel):
        raise GrouperError("--sensitivity asks a whole model for its loss, and memory does not hold it")
    merge = MERGES.configured(options.set)[FITNESSES[options.fitness].own_merge]
    refine = RefineOptions("attention", steps=STEPS, seed=options.seed).plan(regrouper.device)
    windows, judged = regrouper.windows(TOKENS), regrouper.held_out(JUDGED)
    before = nll(model.model, judged)
    size = max(1, refine.batch_tokens // windows.shape[1])
    sides = Sides(model, windows, size, regrouper.device, whole_layers=False, apart=False)
    for layer, of_layer in enumerate(found):
        (site,) = place = model.architecture.places[layer]
        here, points = sides.at(place), []
        for candidate in chosen(of_layer, regrouper.architecture.kv_heads) if layer in layers else []:
            worker = LayerWorker(here.own, regrouper.device, refine).take_up(site, candidate.layout)
            worker.set_targets(here)
            whole = _alone(regrouper, layer, candidate)
            start = regrouper.merged(whole, merge_for(whole, merge).before_refinement())(layer).attention
            done = worker.fit(start, [here], STEPS)
            with model.installed({layer: candidate.layout}, {layer: done}.__getitem__) as installed:
                points.append((candidate.error, nll(installed, judged) - before))
        with here.own.loaded() as module:
            here.own.advance(module)
        if layer in layers:
            progress(layer + 1, len(found), f"what layer {layer} costs alone")
            yield layer, points


def chosen(of_layer: Found, kv_heads: int) -> list[Candidate]:
    """The best candidates at a half, a quarter and an eighth of the KV heads, or at the nearest counts."""
    best = best_per_size([c for candidates in of_layer.values() for c in candidates if c.error > 0])
    if not best:
        return []

    def nearest(at: float) -> int:
        return min(best, key=lambda size: (abs(size - at), size))

    sizes = {nearest(2 * kv_heads / share) for share in (2, 4, 8)}
    return [best[size] for size in sorted(sizes, reverse=True)]


def _alone(regrouper: Regrouper, layer: int, candidate: Candidate) -> HeadLayout:
    """Layout of the model in which only this layer is grouped."""
    a = regrouper.architecture
    whole = a.ungrouped
    layers = (*whole.layers[:layer], candidate.layout, *whole.layers[layer + 1 :])
    return replace(whole, layers=layers)


@dataclass(frozen=True)
class _Point(Row):
    """A row of sensitivity.csv."""

    layer: int
    error: float
    nats: float


def _read(folder: RunFolder) -> dict[int, Points]:
    """Points by layer from sensitivity.csv. Raises GrouperError if the file is damaged."""
    path, points = folder.path / FILE, dict[int, Points]()
    if path.is_file():
        with damage_said(path, "delete it, and it is measured again"):
            for row in read_rows(path, _Point):
                points.setdefault(row.layer, []).append((row.error, row.nats))
            folder.digests.check(path.stem, path)
    return points


def _write(folder: RunFolder, points: dict[int, Points]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["layer", "error", "nats"])
    table.writerows((layer, repr(error), repr(nats)) for layer, own in sorted(points.items()) for error, nats in own)
    folder.digests.write(folder.path / FILE, text.getvalue())
