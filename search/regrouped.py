"""Result of `regroup` in Python."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grouper.export import Exported
from grouper.export.facts import MARKER
from grouper.export.hub import Destination
from grouper.outputs import new_folder
from grouper.scratch import ScratchFolder
from search.runs.columns import CALLED
from search.runs.pareto import ParetoFront


@dataclass(frozen=True, repr=False)
class Regrouped:
    """A regrouped model. model: of transformers, loaded. front: all layouts that were found. exported: the written
    folder, with its self-test. measured: by measure, (value of the original, value of this model), if there was
    held-out text. `save_pretrained` keeps the folder, which is otherwise deleted together with this object."""

    model: Any
    front: ParetoFront
    exported: Exported
    measured: dict[str, list[float | None]]
    _folder: ScratchFolder

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Save the regrouped model with its tokenizer, card and layout to a folder, which `grouper uptrain` also
        takes."""
        with new_folder(Path(folder), MARKER, overwrite) as beside:
            shutil.copytree(self.exported.folder, beside, dirs_exist_ok=True)
        return Path(folder)

    save = save_pretrained

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Push the folder to the Hub. options: fields of Destination, with the names that transformers uses (private,
        revision, create_pr, commit_message). Returns the address of the commit or pull request. Raises GrouperError."""
        destination = Destination(repo_id, **options)
        destination.check()
        return destination.push(Path(self.exported.folder))

    def __repr__(self) -> str:
        before, after = self.exported.kv_bytes_per_token
        words = [type(self.model).__name__, self.exported.export_class]
        words += [f"{after / before:.1%} of the KV cache"] if before else []
        lost, was = self.measured.get(CALLED["nll"], (None, None))[::-1]
        words += [] if lost is None or was is None else [f"{lost - was:+.4f} nats per token"]
        return f"Regrouped({', '.join(words)})"
