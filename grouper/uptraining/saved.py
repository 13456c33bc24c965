"""A training on disk: what it has come to, so that a killed one goes on, and the best weights so far. Safetensors
throughout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from grouper.errors import as_one_line
from grouper.outputs import write_file

Tensors = dict[str, Tensor]


@dataclass
class Reached:
    """step: taken so far. layout: as JSON, for a method may change it. micro_windows: of one pass, which sums depend
    on. best, best_step: the least held-out score, and when. lately: the least since the rate has fallen. waited:
    validations since that. seconds: of training. rate: the schedule's highest, where probes found it. tried: what they
    came to, by rate."""

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


class SavedTraining:
    """A folder with state.safetensors (where training is), best.safetensors (its best weights), log.jsonl."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.logs = Path(str(folder.parent).removesuffix(".uptrain") + ".logs")  # trackers', which stay
        self.state, self.best, self.log = (folder / n for n in ("state.safetensors", "best.safetensors", "log.jsonl"))

    def reached(self) -> Reached | None:
        """Where it is, or None where it has not begun."""
        with damage_said(self.state):
            return _facts(self.state) if self.state.is_file() else None

    def save(self, path: Path, tensors: Tensors, reached: Reached) -> None:
        """In one step, so that a full disk or a kill leaves what was there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"reached": json.dumps(asdict(reached))}
        contiguous = {n: t.detach().contiguous() for n, t in tensors.items()}
        write_file(path, lambda beside: save_file(contiguous, beside, metadata=facts))

    def load(self, path: Path) -> tuple[Tensors, Reached]:
        """Raises GrouperError where the file is damaged."""
        with damage_said(path):
            return load_file(path), _facts(path)

    def note(self, **facts: object) -> None:
        """One line of the log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the log's lines of steps that are taken again."""
        if self.log.is_file():
            lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_file(self.log, lambda beside: beside.write_text("".join(kept), encoding="utf-8"))


@contextmanager
def damage_said(path: Path) -> Iterator[None]:
    with as_one_line(f"{path} is damaged: delete the folder it is in, and training begins anew"):
        yield


def _facts(path: Path) -> Reached:
    with safe_open(path, framework="pt") as file:
        return Reached(**json.loads(file.metadata()["reached"]))
