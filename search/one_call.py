"""`regroup`: a model in, the same model with fewer KV heads out, in one call from Python."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grouper.calibration.calibration import TOKENS, WINDOW, Calibration
from grouper.calibration.source import PAIR, TextSource
from grouper.errors import GrouperError
from grouper.export import Exported
from grouper.export.write import MARKER
from grouper.machine import Machine
from grouper.model.loading import load
from grouper.outputs import new_folder
from grouper.progress import Progress, no_progress
from grouper.refinement.options import RefineOptions
from grouper.scratch import ScratchFolder
from search.export_run import export_from_run
from search.options import SearchOptions
from search.run import search
from search.runs.pareto import ParetoFront
from search.runs.picking import Selection


@dataclass(frozen=True)
class Regrouped:
    """model: of transformers, loaded. front: all layouts that were found. exported: what was written, and its
    self-test. `save` keeps it; without that it goes with this object."""

    model: Any
    front: ParetoFront
    exported: Exported
    _folder: ScratchFolder

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """The regrouped model, with its tokenizer, card and layout, as a folder that `grouper uptrain` takes, too."""
        with new_folder(Path(folder), MARKER, overwrite) as beside:
            shutil.copytree(self.exported.folder, beside, dirs_exist_ok=True)
        return Path(folder)


def regroup(
    model: Any,
    tokenizer: Any = None,
    *,
    text: str | Path | Sequence[str] | Sequence[tuple[str, str]] | None = None,
    images: str | Path | None = None,
    kv_ratio: float | str = 0.5,
    deploy: str | None = None,
    refine: bool = True,
    tokens: int = TOKENS,
    refine_tokens: int | None = None,
    window: int = WINDOW,
    device: str = "auto",
    options: SearchOptions | None = None,
    progress: Progress = no_progress,
) -> Regrouped:
    """Search, merge, refine and load.

    model: a loaded transformers model, a folder, a Hub id or `demo`. tokenizer: a loaded model's, where there is text;
    its processor, where there are pictures. text: what to calibrate and refine on, a file or documents, or pairs of
    source and target for an encoder with a decoder; without it inputs are guessed, and nothing is refined. images: in
    its place, a folder of pictures in folders of classes. kv_ratio: of the cache, as 0.5 or "1/3". deploy: stock,
    padded, ragged or any; stock where there is some. options: of the search, for more than this has words for; text,
    tokens and window are filled in. Raises GrouperError.

    >>> from search import regroup
    >>> small = regroup("demo", kv_ratio="1/2", options=SearchOptions(fitness="weight", generations=2, population=8))
    >>> small.model.config.num_key_value_heads
    8
    """
    machine = Machine(device, progress=progress)
    holder = ScratchFolder()
    place = holder.path
    source = (
        str(model) if isinstance(model, str | Path) else _saved(model, tokenizer, text or images, place / "original")
    )
    calibration = None
    if text is not None:
        file = str(text) if isinstance(text, str | Path) else _documents(text, place / "text.jsonl")
        calibration = Calibration(TextSource(file), tokens, window)
        given = {"text": file, "tokens": tokens, "window": window}
        options = SearchOptions(**{**vars(options or SearchOptions()), **given})
    elif images is not None:
        calibration = Calibration(TextSource(images=str(images)), tokens, window)
        options = SearchOptions(**{**vars(options or SearchOptions()), "images": str(images), "tokens": tokens})
    front = search(source, place / "run", options, machine=machine)
    exported = export_from_run(
        place / "run", place / "out", Selection(kv_ratio=str(kv_ratio), deploy=deploy), calibration,
        RefineOptions(tokens=refine_tokens) if calibration and refine else None, machine=machine,
    )  # fmt: skip
    own_code = exported.export_class == "ragged"  # our own modelling file, written a moment ago
    loaded = load(exported.loader, Path(exported.folder), own_code, dtype="auto").to(machine.device).eval()
    return Regrouped(loaded, front, exported, holder)


def _saved(model: Any, tokenizer: Any, text: object, folder: Path) -> str:
    """A loaded model on disk, for the rest reads checkpoints."""
    if not hasattr(model, "save_pretrained"):
        raise GrouperError(f"cannot regroup a {type(model).__name__}: give a transformers model, a folder or a Hub id")
    if text is not None and tokenizer is None:
        raise GrouperError("text needs the model's tokenizer, or its processor: regroup(model, tokenizer, text=...)")
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def _documents(text: Sequence[Any], file: Path) -> str:
    """Documents, or pairs of source and target, as JSONL."""
    if text and all(isinstance(document, str) for document in text):
        rows = [{"text": document} for document in text]
    elif text and all(isinstance(pair, tuple) and len(pair) == 2 for pair in text):
        rows = [dict(zip(PAIR, pair)) for pair in text]
    else:
        raise GrouperError("text is neither a file nor documents: give a path, or a list of strings or of pairs")
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(file)
