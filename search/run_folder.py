"""A run on disk: run.json, pareto.csv, layouts/, layers/, pareto.svg. What is where, and how it is read back."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grouper.errors import GrouperError
from grouper.layout import HeadLayout, LayerLayout
from grouper.outputs import refuse_existing, write_text
from search.methods.candidate import Candidate
from search.pareto import ParetoFront

MARKER = "run.json"
FREE = (
    "timings",
    "versions",
    "jobs",
    "device",
    "command",
    "model",
)  # may differ between a run and the one that resumes it


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @classmethod
    def start(cls, path: Path, settings: dict[str, Any], overwrite: bool) -> "RunFolder":
        """A new run's folder, or that of an earlier run of the same settings, which then goes on."""
        folder = cls(path)
        if folder.exists() and not overwrite:
            if changed := folder._changed(settings):
                raise GrouperError(
                    f"{path} holds a run with another {', '.join(changed)}: choose another folder, or --overwrite to replace it"
                )
        else:
            refuse_existing(path, MARKER, overwrite)
            folder._clear()
            path.mkdir(parents=True, exist_ok=True)
            folder.write_settings(settings)
        for name in ("layers", "layouts"):
            (path / name).mkdir(exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        folder = cls(path)
        if not folder.exists():
            raise GrouperError(f"{path} holds no run (no {MARKER}): give the folder that `grouper search` wrote")
        return folder

    def exists(self) -> bool:
        return (self.path / MARKER).is_file()

    def _clear(self) -> None:
        """Remove what an earlier run wrote, and nothing else."""
        for pattern in ("layers/*.csv", "layouts/*.json", "pareto.csv", "pareto.svg", "evaluation.json", MARKER):
            for file in self.path.glob(pattern):
                file.unlink()

    # run.json

    @property
    def settings(self) -> dict[str, Any]:
        try:
            settings = json.loads((self.path / MARKER).read_text())
            if not isinstance(settings, dict) or not {"model", "revision", "fingerprint", "text", "seed"} <= set(
                settings
            ):
                raise ValueError("it is no run's settings")
            return settings
        except (OSError, ValueError) as error:
            raise GrouperError(f"cannot read {self.path / MARKER} ({error})") from error

    def write_settings(self, settings: dict[str, Any]) -> None:
        write_text(self.path / MARKER, json.dumps(settings, indent=2) + "\n")

    def _changed(self, settings: dict[str, Any]) -> list[str]:
        mine, theirs = self.settings, json.loads(json.dumps(settings))
        return sorted(k for k in {*mine, *theirs} if k not in FREE and mine.get(k) != theirs.get(k))

    # layers/00.csv

    def layer_path(self, layer: int) -> Path:
        return self.path / "layers" / f"{layer:02}.csv"

    def write_layer(self, layer: int, found: dict[str, list[Candidate]]) -> None:
        """Stage 1 of one layer: method, KV heads, error, the groups as "0 3|1 2", and the whole layout as JSON where groups do not say it."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["method", "kv_heads", "error", "groups", "layout"])
        for method, candidates in found.items():
            for c in candidates:
                groups = "|".join(" ".join(map(str, np.flatnonzero(c.labels == g).tolist())) for g in range(c.kv_heads))
                layout = "" if c.layout is None else json.dumps(c.layout.to_data())
                heads = c.kv_heads if c.layout is None else c.layout.kv_heads
                rows.writerow([method, heads, repr(c.error), groups, layout])
        write_text(self.layer_path(layer), text.getvalue())

    def read_layer(self, layer: int) -> dict[str, list[Candidate]] | None:
        """What write_layer wrote, or None if that layer is not done."""
        if not self.layer_path(layer).is_file():
            return None
        found: dict[str, list[Candidate]] = {}
        try:
            with open(self.layer_path(layer), newline="") as stream:
                for row in csv.DictReader(stream):
                    groups = [list(map(int, group.split())) for group in row["groups"].split("|")]
                    labels = np.empty(sum(map(len, groups)), np.int16)
                    for g, heads in enumerate(groups):
                        labels[heads] = g
                    layout = LayerLayout.from_data(json.loads(row["layout"])) if row["layout"] else None
                    found.setdefault(row["method"], []).append(Candidate(labels, float(row["error"]), layout))
        except (KeyError, ValueError, IndexError, AttributeError, TypeError, GrouperError) as error:
            raise GrouperError(
                f"{self.layer_path(layer)} is damaged: delete it, and that layer is searched again"
            ) from error
        if not found:
            raise GrouperError(f"{self.layer_path(layer)} is damaged: delete it, and that layer is searched again")
        return found

    # layouts and front

    def layout_path(self, number: int) -> Path:
        return self.path / "layouts" / f"{number:04}.json"

    def layout(self, number: int) -> HeadLayout:
        path = self.layout_path(number)
        if not path.is_file():
            raise GrouperError(f"{self.path} has no layout {number}: the numbers are in the first column of pareto.csv")
        return HeadLayout.from_json(path.read_text(errors="replace"))

    def front(self) -> ParetoFront:
        return ParetoFront.read(self.path / "pareto.csv")
