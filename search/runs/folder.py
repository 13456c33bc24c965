"""Folder of a run: run.json, pareto.csv, layouts/, layers/, pareto.svg, evaluation.json, refined.csv, sensitivity.csv,
proxies.csv, tokens/."""

import csv
import io
import json
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from grouper.calibration.kept_tokens import KeptTokens
from grouper.errors import GrouperError
from grouper.layout import Grouping, HeadLayout, LayerLayout
from grouper.outputs import refuse_existing, write_text
from grouper.parsing import shown
from grouper.schema import Row, damage_said, document, read_rows, text_of
from search.methods.candidate import Candidate
from search.runs.pareto import ParetoFront
from search.runs.settings import RunSettings

MARKER = "run.json"
WRITTEN = (  # by searches and evaluations of a run
    "layers/*.csv", "layouts/*.json", "pareto.csv", "pareto.svg", "evaluation.json", "refined.csv", "sensitivity.csv",
    "proxies.csv", "tokens/*.npy", MARKER,
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; `path` may be given as a string."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def start(cls, path: Path, settings: RunSettings, overwrite: bool) -> "RunFolder":
        """A new run's folder, or that of an earlier run of the same settings, which then goes on."""
        folder = cls(path)
        if folder.exists() and not overwrite:
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
        path = self.path / MARKER
        with damage_said(path, "search again, into another folder or with --overwrite"):
            return RunSettings.from_json(text_of(path))

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
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["method", "kv_heads", "error", "groups", "layout", "k_error"])
        for method, candidates in found.items():
            for c in candidates:
                k = c.layout.k
                groups = "|".join(" ".join(map(str, np.flatnonzero(k.labels == g))) for g in range(k.kv_heads))
                plain = LayerLayout.from_labels(k.labels.tolist(), sum(k.sizes) // len(k.labels)) == c.layout
                layout = "" if plain else json.dumps(c.layout.to_data())
                k_error = "" if c.k_error is None else repr(c.k_error)
                table.writerow([method, c.layout.kv_heads, repr(c.error), groups, layout, k_error])
        write_text(self.layer_path(layer), text.getvalue())

    def read_layer(self, layer: int, query_heads: int, kv_heads: int) -> dict[str, list[Candidate]] | None:
        """Candidates of a layer with so many heads, as write_layer wrote them; None if that layer is not done. Raises
        GrouperError where the file is damaged."""
        if not self.layer_path(layer).is_file():
            return None
        path, found = self.layer_path(layer), dict[str, list[Candidate]]()
        with damage_said(path, "delete it, and that layer is searched again"):
            for row in read_rows(path, _CandidateRow):
                found.setdefault(row.method, []).append(row.candidate(query_heads, kv_heads))
            if not found:
                raise GrouperError("it has no rows")
        return found

    # layers/00.progress.csv and refined.csv, for people to look at

    def write_progress(self, layer: int, notes: list[tuple[str, int, float]]) -> None:
        """notes: method, groupings scored so far, the mean of the least errors at all KV-head counts."""
        lines = [f"{method},{scored},{error!r}" for method, scored, error in notes]
        path = self.layer_path(layer).with_suffix(".progress.csv")
        write_text(path, "\n".join(["method,scored,error", *lines]) + "\n")

    def read_progress(self, layer: int) -> pd.DataFrame:
        """What write_progress wrote; empty where there is nothing."""
        return _table(self.layer_path(layer).with_suffix(".progress.csv"), _ProgressRow)

    def note_refined(self, layout: int, merge: str, errors: list[tuple[float, float]]) -> None:
        """errors: of each layer, before and after its refinement; the last time counts."""
        known = self.read_refined()
        known = known[(known["layout"] != layout) | (known["merge"] != merge)]
        new = pd.DataFrame([(layout, merge, layer, *pair) for layer, pair in enumerate(errors)], columns=list(known))
        table = pd.concat([known, new]) if len(known) else new
        write_text(self.path / "refined.csv", table.to_csv(index=False, lineterminator="\n"))

    def forget_refined(self) -> None:
        (self.path / "refined.csv").unlink(missing_ok=True)

    def read_refined(self) -> pd.DataFrame:
        return _table(self.path / "refined.csv", _RefinedRow)

    # layouts and front

    def layout_path(self, number: int) -> Path:
        return self.path / "layouts" / f"{number:04}.json"

    def layout(self, number: int) -> HeadLayout:
        path = self.layout_path(number)
        if not path.is_file():
            raise GrouperError(f"{self.path} has no layout {number}: the numbers are in the first column of pareto.csv")
        with damage_said(path, "run the same search again, which writes it anew"):
            return HeadLayout.from_json(text_of(path))

    def front(self) -> ParetoFront:
        return ParetoFront.read(self.path / "pareto.csv")


@dataclass(frozen=True)
class _CandidateRow(Row):
    """A row of layers/00.csv. Older runs say nothing of K's part of the error."""

    method: str
    kv_heads: str
    error: float
    groups: str
    layout: str = ""
    k_error: float | None = None

    def candidate(self, query_heads: int, kv_heads: int) -> Candidate:
        """Raises GrouperError where it is none of a layer with so many heads."""
        layout = LayerLayout.from_data(document(self.layout)) if self.layout else self._plain(query_heads // kv_heads)
        layout.check("it", query_heads, kv_heads)
        if layout.kv_heads != self.kv_heads:
            raise GrouperError(
                f"groups {shown(self.groups)} are {layout.kv_heads} KV heads, kv_heads is {self.kv_heads}"
            )
        return Candidate(layout, self.error, self.k_error)

    def _plain(self, queries_per_kv_head: int) -> LayerLayout:
        """Query heads go with the KV heads that they read."""
        try:
            sources = tuple(tuple(map(int, group.split())) for group in self.groups.split("|"))
        except ValueError as error:
            raise GrouperError(f"groups is {shown(self.groups)}: expected numbers of heads, like 0 3|1 2") from error
        queries = range(queries_per_kv_head)
        readers = tuple(tuple(h * queries_per_kv_head + q for h in group for q in queries) for group in sources)
        return LayerLayout.shared(Grouping(readers, sources))


@dataclass(frozen=True)
class _ProgressRow(Row):
    """A row of layers/00.progress.csv."""

    method: str
    scored: int
    error: float


@dataclass(frozen=True)
class _RefinedRow(Row):
    """A row of refined.csv."""

    layout: int
    merge: str
    layer: int
    before: float
    after: float


def _table(path: Path, kind: type[Row]) -> pd.DataFrame:
    """A table that nothing depends on: what is missing or damaged is empty."""
    found: list[Row] = []
    with suppress(OSError, GrouperError):
        found = read_rows(path, kind)
    return pd.DataFrame([vars(row) for row in found], columns=[f.name for f in fields(kind)])
