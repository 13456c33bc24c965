"""Regrouping in one call, for Python and the command line: search, refined export, self-test, measurement before and
after."""

import json
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from grouper.calibration.calibration import TOKENS, WINDOW
from grouper.calibration.given import Given, named_text
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export import Exported, ExportOptions
from grouper.export.facts import MARKER
from grouper.export.formats import FORMATS
from grouper.export.hf.slots import check_model_to_split
from grouper.export.hub import Destination
from grouper.families.architecture import Architecture
from grouper.families.configuration import decoder_config
from grouper.machine import Machine
from grouper.merging import MERGES
from grouper.model.loading import load
from grouper.outputs import refuse_existing
from grouper.progress import Progress, no_progress
from grouper.refinement.options import RefineOptions
from grouper.scratch import ScratchFolder
from search.evaluation.held_out import HeldOut, text_held_out
from search.export_run import export_from_run
from search.options import HeldOutOptions, SearchOptions
from search.own_text import with_own_text
from search.regrouped import Regrouped
from search.run import check_counts, search
from search.runs.columns import in_order
from search.runs.folder import RunFolder
from search.runs.pareto import ParetoFront
from search.runs.selection import Selection

HALF = Selection(kv_ratio="1/2")
Pairs = dict[str, list[float | None]]


@dataclass(frozen=True)
class Done:
    """Result of the call. exported: the folder, with its self-test. run: folder of the search. measured: by measure,
    (value of the original, value of the regrouped model). not_measured: the reason if `measured` is empty."""

    exported: Exported
    run: Path
    measured: Pairs
    not_measured: str | None = None

    @property
    def front(self) -> ParetoFront:
        return RunFolder.open(self.run).front()

    def to_data(self) -> dict[str, Any]:
        """The result as data for JSON."""
        more = {"run": str(self.run), "measured": self.measured, "not_measured": self.not_measured}
        return {**self.exported.to_data(), **more}


def regroup_into(
    model: str | PathLike,
    output: str | PathLike,
    selection: Selection = HALF,
    options: SearchOptions | None = None,
    refinement: RefineOptions | None = None,
    export: ExportOptions | None = None,
    destination: Destination | None = None,
    measuring: HeldOutOptions | None = None,
    *,
    revision: str | None = None,
    jobs: str | int = "auto",
    keep_calibration: str | PathLike | None = None,
    machine: Machine | None = None,
    command: str | None = None,
) -> Done:
    """Search `model`, and write one layout of it to the folder `output` and its run to the folder OUTPUT.run.

    The same call resumes if interrupted. refinement: options for refining on the calibration text. measuring: text to
    measure on before and after. export: with its `overwrite`, the folder is replaced, and so is a run of another model
    or other options; a run of the same ones is resumed. Raises GrouperError, before the search if the request cannot
    work.
    """
    machine, export, output = machine or Machine(), export or ExportOptions(), Path(output)
    options, run = (options or SearchOptions()).resolved(), Path(f"{output}.run")
    check(selection, output, export, destination)
    checkpoint = Checkpoint.open(model, revision)
    architecture = Architecture.of(checkpoint.config)
    if export.tp > 1:
        check_model_to_split(decoder_config(checkpoint.config), export.tp)
    check_counts(architecture, options.kv_heads_multiple_of)
    selection.check_reachable(architecture, options)
    aside = export.overwrite or RunFolder(run).sets_aside
    options = with_own_text(options, checkpoint, RunFolder(run), machine, export.overwrite, refinement)
    text = text_held_out(measuring or HeldOutOptions(), options, architecture.family.reads, aside)
    machine.tell(text if isinstance(text, str) else text.told)
    search(
        model, run, options, revision=revision, jobs=jobs, machine=machine, keep_calibration=keep_calibration or True,
        overwrite=export.overwrite, resume=True, command=command,
    )  # fmt: skip
    exported = export_from_run(
        run, output, selection, None, refinement, export, destination, text if isinstance(text, HeldOut) else None,
        machine=machine, keep_calibration=keep_calibration, command=command,
    )  # fmt: skip
    facts = json.loads((output / MARKER).read_text(encoding="utf-8"))
    measured = {name: facts["measured"][name] for name in in_order(facts.get("measured") or {})}
    return Done(exported, run, measured, text if isinstance(text, str) else None)


def check(selection: Selection, output: Path, export: ExportOptions, destination: Destination | None) -> None:
    """Raise GrouperError before the search for anything that the export would refuse."""
    replace(selection, tp=export.tp).check()
    FORMATS.named(export.format)
    if selection.merge:
        MERGES.named(selection.merge)
    if destination:
        destination.check()
    if not (destination and (output / MARKER).is_file()):  # output of the same command is pushed
        refuse_existing(output, MARKER, export.overwrite)


def regroup(
    model: Any,
    tokenizer: Any = None,
    *,
    text: Given | None = None,
    images: str | Path | None = None,
    evaluation: Given | None = None,
    kv_ratio: float | str = 0.5,
    deploy: str | None = None,
    merge: str | None = None,
    refine: bool = True,
    tokens: int = TOKENS,
    refine_tokens: int | None = None,
    window: int = WINDOW,
    device: str = "auto",
    options: SearchOptions | None = None,
    progress: Progress = no_progress,
) -> Regrouped:
    """Search, merge, refine, measure and load.

    model: a loaded transformers model, a folder, a Hub id or `demo`. tokenizer: needed for a loaded model with text;
    for pictures, its processor. text: calibration and refinement text: a file, documents, a dataset (rows with `text`),
    or pairs of source and target for an encoder with a decoder. Without text, inputs are guessed and nothing is
    refined. images: for vision models instead of text, a folder with one folder of pictures per class. evaluation:
    other text, to measure on before and after; by default, part of a long `text` is set aside for that. kv_ratio:
    largest KV cache relative to the original's, as 0.5 or "1/3". deploy: stock, padded, ragged or any; default is stock
    if such a layout exists. merge: name of the merge. device: where the work is done; the result is on a loaded model's
    device, else on this one. options: further options of the search; text, tokens and window are filled in. Raises
    GrouperError.

    >>> from search import regroup
    >>> small = regroup("demo", kv_ratio="1/2", options=SearchOptions(fitness="weight", generations=2, population=8))
    >>> small
    Regrouped(LlamaForCausalLM, stock, 50.0% of the KV cache)
    >>> small.model.config.num_key_value_heads
    8
    """
    machine, holder = Machine(device, progress=progress), ScratchFolder()
    place, options = holder.path, options or SearchOptions()
    source = str(model) if isinstance(model, str | Path) else _saved(model, tokenizer, (text, images), place / "given")
    if text is not None:
        options = replace(options, text=named_text(text, place / "text.jsonl"), tokens=tokens, window=window)
    elif images is not None:
        options = replace(options, images=str(images), tokens=tokens, window=window)
    measuring = HeldOutOptions(None if evaluation is None else named_text(evaluation, place / "other.jsonl"))
    selection = Selection(kv_ratio=str(kv_ratio), deploy=deploy, merge=merge)
    refinement = RefineOptions(tokens=refine_tokens) if refine else None
    done = regroup_into(source, place / "out", selection, options, refinement, measuring=measuring, machine=machine)
    exported = done.exported
    own_code = exported.export_class == "ragged"  # the modelling file that the export has just written
    loaded = load(exported.loader, Path(exported.folder), own_code, dtype="auto").eval()
    loaded = loaded.to(getattr(model, "device", machine.device))
    return Regrouped(loaded, done.front, exported, done.measured, holder)


def _saved(model: Any, tokenizer: Any, reads: tuple[object, ...], folder: Path) -> str:
    """Save a loaded model to disk, because all further steps read checkpoints. Returns the path."""
    if not hasattr(model, "save_pretrained"):
        raise GrouperError(f"cannot regroup a {type(model).__name__}: give a transformers model, a folder or a Hub id")
    if tokenizer is None and any(one is not None for one in reads):
        raise GrouperError("text needs the model's tokenizer, or its processor: regroup(model, tokenizer, text=...)")
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)
