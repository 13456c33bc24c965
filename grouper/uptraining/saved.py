"""Training on disk: its state, so that a killed training resumes, and its best weights so far, as safetensors files."""

import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from grouper.errors import GrouperError
from grouper.outputs import write_file
from grouper.schema import damage_said, document, fitted, text_of
from grouper.tensor_files import Tensors, facts_of, load_tensors, save_tensors

CURE = "delete the folder it is in, and training begins anew"
LARGEST_LOG = 256 * 2**20  # bytes


@dataclass
class Reached:
    """State of a training. step: steps taken so far. layout: layout as JSON, because a method may change it.
    micro_windows: windows per pass, which the sums depend on. best, best_step: lowest held-out score, and its step.
    lately: lowest score since the rate has fallen. waited: number of validations since then. seconds: training time.
    rate: highest rate of the schedule, if probes found it. tried: score of each rate that was probed. log: digest of
    the log, missing in older versions."""

    step: int = 0
    layout: str = ""
    micro_windows: int = 0
    best: float = float("inf")
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    lately: float = float("inf")
    rate: float | None = None
    tried: dict[str, float] = field(default_factory=dict)
    log: int | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.best) or math.isnan(self.lately):
            raise GrouperError("its best score is no number")


class SavedTraining:
    """Folder with state.safetensors (state of the training), best.safetensors (its best weights) and log.jsonl."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.logs = Path(str(folder.parent).removesuffix(".uptrain") + ".logs")  # logs of trackers, which are kept
        self.state, self.best, self.log = (folder / n for n in ("state.safetensors", "best.safetensors", "log.jsonl"))

    def reached(self) -> Reached | None:
        """Saved state; None if the training has not begun."""
        return facts_of(self.state, Reached, CURE) if self.state.is_file() else None

    def save(self, path: Path, tensors: Tensors, reached: Reached) -> None:
        """Write a file in one step; after a full disk or a kill the old file is still there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tensors, reached)

    def load(self, path: Path) -> tuple[Tensors, Reached]:
        """Read a file. Raises GrouperError if it is damaged."""
        return load_tensors(path, Reached, CURE)

    def note(self, **facts: object) -> None:
        """Append a line to the log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def digest_of_log(self) -> int:
        """CRC-32 of the log so far."""
        return zlib.crc32(self.log.read_bytes()) if self.log.is_file() else 0

    def forget_after(self, step: int, digest: int | None = None) -> None:
        """Drop the log's lines after `step`, because these steps are repeated. digest: expected digest of the remaining
        log, if known. Raises GrouperError if it differs, or for lines that Grouper did not write."""
        if not self.log.is_file():
            return
        with damage_said(self.log, CURE):
            lines = text_of(self.log, LARGEST_LOG).splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the last line may be incomplete after a kill
            kept = "".join(line for line in whole if fitted(document(line, finite=False), _Line).step <= step)
            if digest is not None and digest != zlib.crc32(kept.encode()):
                raise GrouperError("it changed since it was written")
        write_file(self.log, lambda beside: beside.write_text(kept, encoding="utf-8"))


@dataclass(frozen=True)
class _Line:
    """Fields of a log line that are read again."""

    step: int
