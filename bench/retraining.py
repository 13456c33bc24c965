"""Convert a small trained model in several ways and train all conversions alike; shared by bench/vit.py and
bench/t5.py.

A conversion is an ordinary export of a layout that `search` found. It is trained as a Student, with the training that
the method was published with, on the same batches in the same order for all. Then it is exported again.
"""

import argparse
import json
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.export import export_model
from grouper.machine import Machine
from grouper.refinement.options import RefineOptions
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.student import Student
from search import RunFolder, SearchOptions, Selection, export_from_run, search

Loss = Callable[[nn.Module, Tensor], Tensor]  # loss of a model on the examples with these numbers
SHARES = {0.5: "half", 0.25: "a quarter"}
RATE, RATE_AFTER = 1e-3, 3e-4  # learning rates for the model and for its conversions
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Conversion:
    """A conversion of the model. method: the one that found the layout. merge: name of the merge. training: name in
    METHODS of the weights to train (the loss is the task's own). refined: refine layer by layer before training."""

    name: str
    method: str
    merge: str = "mean"
    training: str = "gqa"
    refined: bool = False


class Task(ABC):
    """A model and its task. examples: number of training examples. batch: examples per step. auto: class that loads the
    model. tokens: number of tokens for calibration and refinement. scale: factor for scores in the table."""

    conversions: Sequence[Conversion]
    examples: int
    batch: int
    auto: str
    tokens: int
    scale: float = 1.0

    @abstractmethod
    def new_model(self) -> nn.Module:
        """A model with random weights, from the present state of the random generator."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Save the model, with the tokenizer or processor that reads its inputs."""

    @abstractmethod
    def source(self, folder: Path, seed: int) -> TextSource:
        """Calibration data from the training examples, written into `folder`."""

    @abstractmethod
    def loss(self, model: nn.Module, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def score(self, model: nn.Module) -> float:
        """Score of the model on test data."""


def main(doc: str, make: Callable[[argparse.Namespace], Task], parser: argparse.ArgumentParser, steps: int) -> None:
    """Run the benchmark. parser: with the options of this benchmark, to which the common ones are added."""
    parser.description, parser.formatter_class = doc, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=steps, help="of training the model")
    parser.add_argument("--more", type=int, default=200, help="steps of training a conversion")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", help="only print the table of these --json files")
    args = parser.parse_args()
    task, began, found = make(args), time.perf_counter(), []
    if args.table:
        return print(table(task, [row for file in args.table for row in json.loads(file.read_text())]))
    for seed in map(int, args.seeds.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            found += of_seed(task, args, seed, Path(temporary))
        print(f"seed {seed} done after {time.perf_counter() - began:.0f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(task, found))


def of_seed(task: Task, args: argparse.Namespace, seed: int, folder: Path) -> list[dict]:
    torch.manual_seed(seed)
    model = task.new_model().to(DEVICE)
    order = passes(task.examples, task.batch, args.steps, seed)
    took = descend(model, list(model.parameters()), task.loss, order, RATE)
    original = task.score(model.eval())
    print(f"seed {seed}: trained in {took:.0f} s, {original:.4f}", flush=True)
    task.save(model, folder / "model")
    source = task.source(folder, seed)
    run = searched(folder / "model", folder / "run", task.conversions, source, tokens=task.tokens, seed=seed)
    more = passes(task.examples, task.batch, args.more, 1000 + seed)
    descend(model.train(), list(model.parameters()), task.loss, more, RATE_AFTER)
    after = task.score(model.eval())
    found = [{"seed": seed, "name": "original", "share": 1.0, "before": original, "after": after}]
    for share in SHARES:
        for number, conversion in enumerate(task.conversions):
            start = exported(run, conversion, share, folder / f"{share}-{number}", source, task.tokens, seed)
            before, after, student = trained(start, conversion, task, more)
            found.append({"seed": seed, "name": conversion.name, "share": share, "before": before, "after": after})
            if seed == 0:
                found[-1]["exported"] = of_folder(task, student, folder / f"{share}-{number}-trained")
            print(json.dumps(found[-1]), flush=True)
    return found


def of_folder(task: Task, student: Student, folder: Path) -> float:
    """Score of a trained conversion after it was exported, and loaded as a user would load it."""
    import transformers

    base, around = student.exported.base, student.around()
    export_model(base, student.layout, folder, merge="trained", merged=student.layer, around=around)
    model = getattr(transformers, task.auto).from_pretrained(folder, trust_remote_code=True)
    return task.score(model.to(DEVICE).eval())


def table(task: Task, found: list[dict]) -> str:
    """Table of means over seeds, with their standard errors."""
    lines = ["| conversion | KV heads | before training | after |", "| --- | --- | --- | --- |"]
    places = [("original", 1.0), *((c.name, share) for share in SHARES for c in task.conversions)]
    for name, share in places:
        rows = [r for r in found if r["share"] == share and r["name"] == name]
        before, after = (mean_and_error([task.scale * r[key] for r in rows]) for key in ("before", "after"))
        lines.append(f"| {name} | {SHARES.get(share, '8')} | {before} | {after} |")
    return "\n".join(lines)


def descend(
    model: nn.Module, parameters: list, loss: Loss, order: Tensor, rate: float, after=lambda step: None
) -> float:
    """Train by AdamW over batches of `order` [steps, batch]. The learning rate rises for a twentieth of the steps, then
    falls as a cosine. Returns the seconds it took."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    steps, gpu, began = len(order), DEVICE == "cuda", time.perf_counter()
    for step, rows in enumerate(order):
        share = min(1, (step + 1) / max(1, steps // 20)) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        with torch.autocast(DEVICE, torch.bfloat16, enabled=gpu):
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
    """Numbers [steps, batch] of examples, in shuffled passes over all of them."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-steps * batch // n))])
    return flat[: steps * batch].view(steps, batch)


def searched(model: Path, run: Path, conversions: Sequence[Conversion], source: TextSource, **options) -> RunFolder:
    """One run with the layouts of all conversions."""
    methods = tuple(dict.fromkeys(c.method for c in conversions if c.method != "neighbour"))
    given = {"text": source.text, "images": source.images}
    search(model, run, SearchOptions(method=methods, **given, **options), jobs=1)
    return RunFolder(run)


def exported(
    run: RunFolder, conversion: Conversion, share: float, folder: Path, source: TextSource, tokens: int, seed: int
) -> ExportedModel:
    """The best layout of the conversion's method at this share of the KV heads, exported to a folder."""
    front = run.front()
    baseline = conversion.method == "neighbour"
    table = front.table[front.table["method"] == "neighbour"] if baseline else front.found_by(conversion.method)
    table = table[(table["kv_ratio"] - share).abs() < 0.005].sort_values("error")
    calibration = Calibration(source, tokens, run.settings.options.window)
    refine = RefineOptions("block", tokens=tokens, seed=seed) if conversion.refined else None
    selection = Selection(layout=int(table.iloc[0]["layout"]), merge=conversion.merge)
    export_from_run(run.path, folder, selection, calibration, refine, machine=Machine(device=DEVICE))
    return ExportedModel.open(folder, run.settings.model)


def trained(model: ExportedModel, conversion: Conversion, task: Task, order: Tensor) -> tuple[float, float, Student]:
    """(score before training, score after it, the trained student)."""
    method = METHODS.configured(("dgqa.every=50",)).named(conversion.training)
    method.check(model)
    student = Student(model, method, DEVICE)
    before = task.score(student.model.eval())

    def after(step: int) -> None:
        for attention in student.attentions:
            attention.after_step(step)

    parameters = [p for _, p in student.trained()]
    descend(student.model.train(), parameters, task.loss, order, RATE_AFTER, after)
    return before, task.score(student.model.eval()), student


def mean_and_error(values: Sequence[float]) -> str:
    """Mean and standard error over seeds."""
    array = np.asarray(values)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else float("nan")
    return f"{array.mean():.4g} ± {error:.2g}"
