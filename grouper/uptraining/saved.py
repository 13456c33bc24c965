"""A training on disk: what it has come to, so that a killed one goes on, and the best weights so far. Safetensors
throughout."""

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
    """step: taken so far. layout: as JSON, for a method may change it. micro_windows: of one pass, which sums depend
    on. best, best_step: the least held-out score, and when. lately: the least since the rate has fallen. waited:
    validations since that. seconds: of training. rate: the schedule's highest, where probes found it. tried: what they
    came to, by rate. log: digest of the log, which older versions did not keep."""

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
    """A folder with state.safetensors (where training is), best.safetensors (its best weights), log.jsonl."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.logs = Path(str(folder.parent).removesuffix(".uptrain") + ".logs")  # trackers', which stay
        self.state, self.best, self.log = (folder / n for n in ("state.safetensors", "best.safetensors", "log.jsonl"))

    def reached(self) -> Reached | None:
        """Where it is, or None where it has not begun."""
        return facts_of(self.state, Reached, CURE) if self.state.is_file() else None

    def save(self, path: Path, tensors: Tensors, reached: Reached) -> None:
        """In one step, so that a full disk or a kill leaves what was there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tensors, reached)

    def load(self, path: Path) -> tuple[Tensors, Reached]:
        """Raises GrouperError where the file is damaged."""
        return load_tensors(path, Reached, CURE)

    def note(self, **facts: object) -> None:
        """One line of the log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def digest_of_log(self) -> int:
        """CRC-32 of what is noted so far."""
        return zlib.crc32(self.log.read_bytes()) if self.log.is_file() else 0

    def forget_after(self, step: int, digest: int | None = None) -> None:
        """Drop the log's lines of steps that are taken again. digest: what it had at that step, where that is known.
        Raises GrouperError for another one, and for lines that are none of ours."""
        if not self.log.is_file():
            return
        with damage_said(self.log, CURE):
            lines = text_of(self.log, LARGEST_LOG).splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a kill may have cut one off
            kept = "".join(line for line in whole if fitted(document(line, finite=False), _Line).step <= step)
            if digest is not None and digest != zlib.crc32(kept.encode()):
                raise GrouperError("it changed since it was written")
        write_file(self.log, lambda beside: beside.write_text(kept, encoding="utf-8"))


@dataclass(frozen=True)
class _Line:
    """A line of the log, as far as it is read again."""

    step: int
