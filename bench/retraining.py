"""Convert a small trained model in every way and train all conversions alike: what bench/vit.py and bench/t5.py share.

A conversion is an ordinary export of a layout that `search` found; it is then trained as a Student, by the way that the
method was published with, on the same batches in the same order, and exported again.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.export import export_model
from grouper.refinement.layer import RefineOptions
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.student import Student
from search import RunFolder, SearchOptions, Selection, export_from_run, search

Loss = Callable[[nn.Module, Tensor], Tensor]  # of a model on the examples of these numbers


@dataclass(frozen=True)
class Conversion:
    """method: who found the layout. merge: how heads become one. training: what learns, a name in METHODS (the loss is
    the task's own). refined: layer by layer before that."""

    name: str
    method: str
    merge: str = "mean"
    training: str = "gqa"
    refined: bool = False


def descend(
    model: nn.Module, parameters: list, loss: Loss, order: Tensor, rate: float, after=lambda step: None
) -> float:
    """AdamW over batches of `order` [steps, batch], rates rising for a twentieth of the steps, then falling as a
    cosine. Returns the seconds it took."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    steps, gpu, began = len(order), torch.cuda.is_available(), time.perf_counter()
    for step, rows in enumerate(order):
        share = min(1, (step + 1) / max(1, steps // 20)) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        with torch.autocast("cuda" if gpu else "cpu", torch.bfloat16, enabled=gpu):
            found = loss(model, rows)
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after(step + 1)
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def passes(n: int, batch: int, steps: int, seed: int) -> Tensor:
    """[steps, batch]: examples in shuffled passes over all of them."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-steps * batch // n))])
    return flat[: steps * batch].view(steps, batch)


def searched(model: Path, run: Path, conversions: Sequence[Conversion], source: TextSource, **options) -> RunFolder:
    """One run with everybody's layouts."""
    methods = tuple(dict.fromkeys(c.method for c in conversions if c.method != "neighbour"))
    given = {"text": source.text, "images": source.images}
    search(model, run, SearchOptions(method=methods, **given, **options), jobs=1)
    return RunFolder(run)


def exported(
    run: RunFolder, conversion: Conversion, share: float, folder: Path, source: TextSource, tokens: int, seed: int
) -> ExportedModel:
    """The best layout of its method at this share of the KV heads, as a folder."""
    table = run.front().found_by(conversion.method)
    if conversion.method == "neighbour":
        table = run.front().table
        table = table[table["method"] == "neighbour"]
    table = table[(table["kv_ratio"] - share).abs() < 0.005].sort_values("error")
    calibration = Calibration(source, tokens, run.settings.options.window)
    refine = RefineOptions("block", tokens=tokens, seed=seed) if conversion.refined else None
    selection = Selection(layout=int(table.iloc[0]["layout"]), merge=conversion.merge)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    export_from_run(run.path, folder, selection, calibration, refine, device=device)
    return ExportedModel.open(folder, run.settings.model)


def trained(model: ExportedModel, conversion: Conversion, loss: Loss, order: Tensor, rate: float, device: str, score):
    """(score before training, after it, of the folder that comes out) of a conversion. score(network) -> float."""
    method = METHODS.configured(("dgqa.every=50",)).named(conversion.training)
    method.check(model)
    student = Student(model, method, device)
    student.model.eval()
    before = score(student.model)
    student.model.train()
    parameters = [p for _, p in student.trained()]

    def after(step: int) -> None:
        for attention in student.attentions:
            attention.after_step(step)

    descend(student.model, parameters, loss, order, rate, after)
    student.model.eval()
    return before, score(student.model), student


def written(student: Student, folder: Path) -> None:
    """What came out, as an export."""
    export_model(
        student.exported.base, student.layout, folder, merge="trained", merged=student.layer, around=student.around()
    )


def mean_and_error(values: Sequence[float]) -> str:
    """Over seeds."""
    array = np.asarray(values)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else float("nan")
    return f"{array.mean():.4g} ± {error:.2g}"
