"""Layer-wise reconstruction after a merge: the shared K and V heads, q and o are trained to reproduce the original
layer's output.

Layers are refined in order, those of an encoder before those of its decoder. Two residual streams run in parallel over
the calibration text: the original's, and that of the regrouped model, which includes the errors of the layers before.
The regrouped decoder reads the output of the regrouped encoder. At each layer, Adam fits q, shared k, shared v and o so
that the regrouped stream after the layer matches the original's. This needs no labels, no backward pass through the
model, and memory for only one layer at a time.

Scope "attention" matches the stream after the attention sublayer and trains its projections. Scope "block" matches the
stream after the whole layer and also trains its MLP and norms, at a lower rate. Experts that the class stores stacked
stay unchanged. A decoder layer with cross-attention has two attentions: self-attention is fitted first, then, with the
result in place, cross-attention.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grouper.attention import Merged
from grouper.errors import GrouperError
from grouper.families.sites import Site
from grouper.layout import HeadLayout
from grouper.machine import Tell, no_message
from grouper.names import expected
from grouper.progress import Progress, no_progress
from grouper.ranks import ALONE, Ranks
from grouper.refinement.descent import TOLD, WARM_UP
from grouper.refinement.layer import MEASURED, LayerWorker
from grouper.refinement.options import SCOPES, AskedRefinement, RefineOptions, RefinePlan
from grouper.refinement.sides import Sides
from grouper.refinement.store import LayerStore
from grouper.running.batch import Batch
from grouper.running.layers import Layers
from grouper.threads import in_background, made_ahead

ESTIMATED = {"cpu": 8, "cuda": 2 * TOLD}  # steps from which the time is estimated
Texts = Tensor | Batch | Sequence[Tensor | Batch]


def refine_layers(
    model: Layers,
    layout: HeadLayout,
    merged: Merged,
    texts: Texts,
    options: AskedRefinement | None = None,
    *,
    device: str | None = None,
    folder: Path | None = None,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
    tell: Tell = no_message,
) -> LayerStore:
    """Refine attention by attention; one that training does not improve stays as merged. Returns the weights of the
    layers.

    model: the original; it may stay on the CPU while layers are refined on `device` one by one. merged(layer): merged
    weights to start from. texts: windows [n, tokens] of calibration text, or inputs of an encoder; or several of these
    with different lengths. folder: keeps finished layers instead of memory, so that a killed refinement resumes with
    the next layer. ranks: processes that share every step's windows and sum their gradients; the first one writes
    layers to `folder`, where all read them. tell: receives a line with the errors of each finished layer. The same call
    gives the same weights on the same machine.
    """
    device = device or model.device
    plan = (options or RefineOptions()).plan(device)
    if plan.scope not in SCOPES:
        raise GrouperError(f"unknown scope {plan.scope!r}: {expected(plan.scope, SCOPES)}")
    every = sides_of(model, texts, plan, device)
    steps, layers = plan.steps_for(sum(sides.tokens for sides in every)), len(layout.layers)
    store = LayerStore(folder)
    todo = [site.index for place in model.architecture.places for site in place if site.index not in store]
    with deterministic(), in_background() as background, made_ahead(merged, ranks.first_does(lambda: todo)) as start:
        for place in model.architecture.places:
            here = [sides.at(place) for sides in every]
            worker, advanced = LayerWorker(here[0].own, device, plan, ranks), False
            for site in place:
                worker.take_up(site, layout.layers[site.index])
                if ranks.first_does(partial(store.__contains__, site.index)):
                    worker.set(store(site.index))
                    tell(errors_of(site, *store.errors(site.index)))
                    continue
                if not advanced:
                    for sides in here:
                        worker.set_targets(sides)
                    advanced = plan.scope == "block"  # the target is the original's next stream
                done = worker.fit(start(site.index).attention, here, steps, _of_layer(progress, site, layers))
                tell(errors_of(site, done.before, done.after))
                if folder is None:
                    store.keep(site.index, done.on_cpu())
                elif ranks.first:
                    background(store.keep, site.index, done.on_cpu(pinned=True))
                del done  # frees a whole layer
            for sides in here:
                if not advanced:
                    worker.advance(worker.original, sides.own, sides)
                worker.advance(worker.regrouped, sides.ours, sides)
    ranks.wait()
    return store


def _of_layer(progress: Progress, site: Site, layers: int) -> Progress:
    """Progress of one attention's steps as a part of the progress over all layers."""

    def stepped(step: int, steps: int, note: str) -> None:
        progress(site.index * steps + step, layers * steps, f"refining {site.name}, {note}")

    return stepped


def errors_of(site: Site, before: float, after: float) -> str:
    """Message about a refined layer."""
    return f"{site.name}: error {before:.4f} -> {after:.4f}"


def sides_of(model: Layers, texts: Texts, plan: RefinePlan, device: str) -> list[Sides]:
    """Both streams of each text at the first layer."""
    batches = [Batch.of(one) for one in ([texts] if isinstance(texts, Tensor | Batch) else texts)]
    sizes = [max(1, plan.batch_tokens // batch.tokens) for batch in batches]
    return [Sides(model, b, size, device, plan.scope == "block") for b, size in zip(batches, sizes)]


def estimate_seconds(
    model: Layers,
    layout: HeadLayout,
    merged: Merged,
    texts: Texts,
    plan: RefinePlan,
    device: str,
    ranks: Ranks = ALONE,
) -> float:
    """Estimate the seconds that `refine_layers` will take, from steps and passes of the first layer on parts of real
    size, after a warm-up. Each rank measures by itself; shared work is divided by the number of ranks. texts: as in
    `refine_layers`; the first one stands for all."""
    batches = [Batch.of(one) for one in ([texts] if isinstance(texts, Tensor | Batch) else texts)]
    tokens = sum(batch.numel() for batch in batches)
    few = batches[0][: max(1, plan.batch_tokens // batches[0].tokens)]
    parts = -(-tokens // few.numel())
    (sides,) = sides_of(model, few, replace(plan, scope="attention"), device)
    place = model.architecture.places[0]
    here, start = sides.at(place), merged(0).attention

    def worker_of_a_layer() -> LayerWorker:
        return LayerWorker(here.own, device, plan).take_up(place[0], layout.layers[0])

    worker = worker_of_a_layer()
    merging, set_up = _seconds(lambda: merged(0), device), _seconds(worker_of_a_layer, device)
    told: dict[int, float] = {}
    steps = ESTIMATED["cuda" if "cuda" in str(device) else "cpu"]
    worker.set_targets(here)

    def fit(steps: int) -> None:
        tell = lambda step, _steps, _note: told.__setitem__(step, time.perf_counter())  # noqa: E731
        worker.fit(start, [here], steps, tell).on_cpu(pinned=True)

    with deterministic():
        fit(WARM_UP + 1)
        told.clear()
        took = _seconds(lambda: fit(steps), device)
    step = 0.0
    if told:  # otherwise there was nothing to gain
        first = sorted(told)[len(told) // 2 - 1]  # from the middle on, steps have their usual speed
        step = (told[steps] - told[first]) / (steps - first)
    once = max(took - step * steps, 0)  # errors before and after, on up to 16 parts
    worker.advance(worker.regrouped, here.own, here)  # a GPU's first pass takes ten times as long as later ones
    forward = _seconds(lambda: worker.advance(worker.regrouped, here.own, here), device)
    passes = 2 if plan.scope == "block" else 3
    measured = 2 * forward * (min(parts, MEASURED) - 1)
    shared = (step * plan.steps_for(tokens) + passes * forward * parts) / ranks.size
    return len(layout.layers) * _of_a_layer(merging, set_up + once + measured + shared, device)


def _of_a_layer(merging: float, rest: float, device: str) -> float:
    """Seconds per layer. On a GPU, a layer is merged on the CPU cores while the layer before it is refined."""
    return max(merging, rest) if "cuda" in str(device) else merging + rest


def _seconds(call: Callable[[], object], device: str) -> float:
    def wait() -> None:
        if "cuda" in str(device):
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic operations in this block where they exist, so that gradients are reproducible."""
    before, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # the module's one attribute is added while it is imported
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # a debugging aid that takes a twentieth of the time
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass has no deterministic form
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        settings.fill_uninitialized_memory = fills
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
