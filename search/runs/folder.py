"""Folder of a run: run.json, pareto.csv, layouts/, layers/, pareto.svg, evaluation.json, refined.csv, samples.json,
sensitivity.csv, proxies.csv, tokens/."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from grouper.calibration.kept_tokens import KeptTokens
from grouper.errors import GrouperError
from grouper.layout import HeadLayout, LayerLayout
from grouper.outputs import refuse_existing, write_text
from search.methods.candidate import Candidate
from search.runs.pareto import EXACT, ParetoFront
from search.runs.settings import RunSettings

MARKER = "run.json"
WRITTEN = (  # by searches and evaluations of a run
    "layers/*.csv", "layouts/*.json", "pareto.csv", "pareto.svg", "evaluation.json", "refined.csv", "samples.json",
    "sensitivity.csv", "proxies.csv", "tokens/*.npy", MARKER,
)  # fmt: skip
REFINED = ["layout", "merge", "layer", "before", "after"]  # columns of refined.csv


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; `path` may be given as a string."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def start(cls, path: Path, settings: RunSettings, overwrite: bool, resume: bool = False) -> "RunFolder":
        """A new run's folder, or that of an earlier run of the same settings, which then goes on: without `overwrite`,
        or with `resume`."""
        folder = cls(path)
        if folder.exists() and (not overwrite or (resume and folder._is_of(settings))):
            if changed := settings.changed(folder.settings):
                what = f"{path} holds a run with another {', '.join(changed)}"
                raise GrouperError(f"{what}: choose another folder, or --overwrite to replace it")
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

    def _is_of(self, settings: RunSettings) -> bool:
        try:
            return not settings.changed(self.settings)
        except GrouperError:  # it cannot be read
            return False

    def _clear(self) -> None:
        """Remove what an earlier run wrote, and nothing else."""
        for pattern in WRITTEN:
            for file in self.path.glob(pattern):
                file.unlink()

    # tokens/

    def kept_tokens(self) -> KeptTokens:
        """Windows of texts that were tokenised for this run, of which there need be none yet."""
        return KeptTokens(self.path / "tokens")

    # run.json

    @property
    def settings(self) -> RunSettings:
        try:
            return RunSettings.from_json((self.path / MARKER).read_text())
        except (OSError, ValueError, GrouperError) as error:
            raise GrouperError(f"cannot read {self.path / MARKER} ({error})") from error

    @property
    def sets_aside(self) -> bool:
        """Whether stretches of the text are set aside: not in a run that an older version began."""
        return not self.exists() or self.settings.set_aside

    def write_settings(self, settings: RunSettings) -> None:
        write_text(self.path / MARKER, settings.to_json())

    # layers/00.csv

    def layer_path(self, layer: int) -> Path:
        return self.path / "layers" / f"{layer:02}.csv"

    def write_layer(self, layer: int, found: dict[str, list[Candidate]]) -> None:
        """Stage 1 of one layer: method, KV heads, error, the groups of KV heads as "0 3|1 2", the whole layout as JSON
        where groups do not say it, and K's part of the error."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["method", "kv_heads", "error", "groups", "layout", "k_error"])
        for method, candidates in found.items():
            for c in candidates:
                k = c.layout.k
                groups = "|".join(" ".join(map(str, np.flatnonzero(k.labels == g))) for g in range(k.kv_heads))
                plain = LayerLayout.from_labels(k.labels.tolist(), sum(k.sizes) // len(k.labels)) == c.layout
                layout = "" if plain else json.dumps(c.layout.to_data())
                k_error = "" if c.k_error is None else repr(c.k_error)
                rows.writerow([method, c.layout.kv_heads, repr(c.error), groups, layout, k_error])
        write_text(self.layer_path(layer), text.getvalue())

    def read_layer(self, layer: int, queries_per_kv_head: int) -> dict[str, list[Candidate]] | None:
        """What write_layer wrote, or None if that layer is not done."""
        if not self.layer_path(layer).is_file():
            return None
        found: dict[str, list[Candidate]] = {}
        try:
            with open(self.layer_path(layer), newline="") as stream:
                for row in csv.DictReader(stream):
                    layout = _layout_of(row, queries_per_kv_head)
                    k_error = float(row["k_error"]) if row.get("k_error") else None  # older runs have none
                    found.setdefault(row["method"], []).append(Candidate(layout, float(row["error"]), k_error))
        except (KeyError, ValueError, IndexError, AttributeError, TypeError, RecursionError, GrouperError) as error:
            raise self._damaged(layer) from error
        if not found:
            raise self._damaged(layer)
        return found

    def _damaged(self, layer: int) -> GrouperError:
        return GrouperError(f"{self.layer_path(layer)} is damaged: delete it, and that layer is searched again")

    # layers/00.progress.csv and refined.csv, for people to look at

    def write_progress(self, layer: int, notes: list[tuple[str, int, float]]) -> None:
        """notes: method, groupings scored so far, the mean of the least errors at all KV-head counts."""
        lines = [f"{method},{scored},{error!r}" for method, scored, error in notes]
        path = self.layer_path(layer).with_suffix(".progress.csv")
        write_text(path, "\n".join(["method,scored,error", *lines]) + "\n")

    def read_progress(self, layer: int) -> pd.DataFrame:
        """What write_progress wrote; empty where there is nothing."""
        return _table(self.layer_path(layer).with_suffix(".progress.csv"), ["method", "scored", "error"])

    def note_refined(self, layout: int, merge: str, errors: list[tuple[float, float]]) -> None:
        """errors: of each layer, before and after its refinement; the last time counts."""
        known = self.read_refined()
        known = known[(known["layout"] != layout) | (known["merge"] != merge)]
        rows = [(layout, merge, layer, *pair) for layer, pair in enumerate(errors)]
        new = pd.DataFrame(rows, columns=REFINED)
        table = pd.concat([known, new]) if len(known) else new
        write_text(self.path / "refined.csv", table.to_csv(index=False, lineterminator="\n"))

    def forget_measured(self) -> None:
        """Remove what evaluations wrote beside the columns of pareto.csv."""
        for name in ("refined.csv", "samples.json"):
            (self.path / name).unlink(missing_ok=True)

    def read_refined(self) -> pd.DataFrame:
        return _table(self.path / "refined.csv", REFINED)

    # layouts and front

    def layout_path(self, number: int) -> Path:
        return self.path / "layouts" / f"{number:04}.json"

    def layout(self, number: int) -> HeadLayout:
        path = self.layout_path(number)
        if not path.is_file():
            raise GrouperError(f"{self.path} has no layout {number}: the numbers are in the first column of pareto.csv")
        try:
            return HeadLayout.from_json(path.read_text(errors="replace"))
        except GrouperError as error:
            raise GrouperError(f"{path} is damaged ({error}): delete it, and run the search again") from error

    def front(self) -> ParetoFront:
        return ParetoFront.read(self.path / "pareto.csv")


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table that nothing depends on: what is missing or damaged is empty."""
    try:
        table = pd.read_csv(path, **EXACT)[columns]
        for column in table.columns.difference(["method", "merge"]):
            table[column] = pd.to_numeric(table[column])
        if table.isna().to_numpy().any():
            raise ValueError("cells are empty")
        return table
    except (OSError, ValueError, KeyError, TypeError):
        return pd.DataFrame(columns=columns)


def _layout_of(row: dict[str, str], queries_per_kv_head: int) -> LayerLayout:
    if row["layout"]:
        return LayerLayout.from_data(json.loads(row["layout"]))
    groups = [list(map(int, group.split())) for group in row["groups"].split("|")]
    labels = np.empty(sum(map(len, groups)), np.int16)
    for g, members in enumerate(groups):
        labels[members] = g
    return LayerLayout.from_labels(labels.tolist(), queries_per_kv_head)
