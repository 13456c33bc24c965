"""Measurement of a model: an unchanged one alone, or an exported or healed one together with its original."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grouper.calibration.calibration import WINDOW
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.evaluation.closeness import Original, closeness_of
from grouper.evaluation.tasks import TaskOptions, Tasks
from grouper.export.facts import MARKER
from grouper.machine import Machine
from grouper.model.loadable import check_model
from grouper.progress import duration
from grouper.running.batch import Batch
from grouper.running.layers import Layers
from grouper.running.opening import open_model
from grouper.uptraining.exported import ExportedModel
from search.evaluation.about import About, about_export, about_model
from search.evaluation.meter import in_memory, on_texts
from search.evaluation.texts import Texts, amount, seconds_of, texts_of

Values = dict[str, float]


@dataclass(frozen=True)
class EvaluatedModel:
    """Measurements of a model. name: the model's. values: by column, as in pareto.csv. original: the same of the
    original, if that is another model and was found. about: what it is, and how it was measured."""

    name: str
    values: Values
    original: Values | None = None
    about: About | None = None

    def to_data(self) -> dict[str, Any]:
        number = lambda v: v if v == v else None  # noqa: E731  JSON has no NaN
        parts = {"values": self.values, "original": self.original or {}}
        numbers = {n: {k: number(v) for k, v in part.items()} for n, part in parts.items()}
        return {"model": self.name, **numbers, **({"about": self.about.to_data()} if self.about else {})}


def names_a_model(text: str) -> bool:
    """Whether the text names a model, not a run: a folder with a config.json, `demo`, or a possible Hub id."""
    path = Path(text)
    if (path / "run.json").is_file():
        return False
    return (path / "config.json").is_file() or (not path.exists() and (text == "demo" or text.count("/") == 1))


def can_be_measured(folder: str | Path) -> bool:
    """Whether `evaluate_model` can measure this export; it cannot measure GGUF files, nor some ragged exports."""
    try:
        return bool(ExportedModel.open(folder))
    except GrouperError:
        return False


def evaluate_model(
    model: str | Path,
    source: TextSource | Texts | None = None,
    *,
    tasks: TaskOptions | None = None,
    base: str | None = None,
    window: int = WINDOW,
    limit: int | None = None,
    machine: Machine | None = None,
    command: str | None = None,
) -> EvaluatedModel:
    """Measure a model. model: a folder that `grouper export` or `grouper uptrain` wrote, or any model of a known
    family. base: an export's original, if grouper.json does not lead to it. command: the command line as typed, for the
    record. Raises GrouperError."""
    machine = machine or Machine()
    if (Path(model) / MARKER).is_file():
        exported = ExportedModel.open(model, base)
        if exported.base is not exported.folder:  # else it was folded into another class, and is measured alone
            return _of_export(exported, source, tasks, window, limit, machine, command)
    checkpoint = Checkpoint.open(model).local()
    check_model(checkpoint)
    texts = texts_of(checkpoint, source, tasks, window, limit)
    opened = open_model(checkpoint, machine.device, machine.memory)
    announce(opened, texts, 1, machine)
    found = {name: Original.of(opened, one, machine.progress, machine.ranks) for name, one in texts.items()}
    values = own(on_texts({name: one.columns for name, one in found.items()}))
    if tasks:
        values |= Tasks(tasks).scores(in_memory(opened).model, load_tokenizer(checkpoint))
    about = about_model(checkpoint, texts=texts, source=source, command=command, device=machine.device)
    return EvaluatedModel(checkpoint.name, values, about=about)


def _of_export(
    exported: ExportedModel,
    source: TextSource | Texts | None,
    tasks: TaskOptions | None,
    window: int,
    limit: int | None,
    machine: Machine,
    command: str | None,
) -> EvaluatedModel:
    """Measure the original, and a second model of its class that holds the export's weights instead."""
    texts = texts_of(exported.original, source, tasks, window, limit)
    original, healed = (open_model(exported.base, machine.device, machine.memory) for _ in range(2))
    announce(original, texts, 2, machine)
    healed.replace_around(exported.around())
    layout, merged = exported.layout, exported.layer
    originals = {name: Original.of(original, one, machine.progress, machine.ranks) for name, one in texts.items()}
    before = own(on_texts({name: one.columns for name, one in originals.items()}))
    shared = (machine.progress, machine.ranks)
    after = on_texts({n: closeness_of(healed, one, layout, merged, *shared) for n, one in originals.items()})
    if tasks:
        loaded, tokenizer = Tasks(tasks), load_tokenizer(exported.original)
        before |= loaded.scores(in_memory(original).model, tokenizer)
        with in_memory(healed).installed(layout, merged) as installed:
            after |= loaded.scores(installed, tokenizer)
    about = about_export(exported, texts=texts, source=source, command=command, device=machine.device)
    return EvaluatedModel(exported.folder.name, after, before, about)


def announce(model: Layers, texts: dict[str, Batch], models: int, machine: Machine) -> None:
    """Print the amount of text that this many models are measured on, and the estimated time."""
    each = seconds_of(model, texts)
    if each is not None:
        machine.tell(f"measuring on {amount(texts)}: about {duration(models * each)}")


def own(values: Values) -> Values:
    """The measurements that need no comparison with another model."""
    return {
        name: value for name, value in values.items() if re.split("[@:]", name)[0] in ("nll", "perplexity", "accuracy")
    }
