"""Folder of a run, with run.json, pareto.csv, layouts/, layers/, pareto.svg, evaluation.json, refined.csv,
samples.json, bounds.csv, sensitivity.csv, proxies.csv, tokens/, moments/, answers/, digests/."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from grouper.calibration.kept_tokens import KeptTokens
from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.machine import Tell, no_message
from grouper.outputs import refuse_existing, write_text
from grouper.schema import Row, damage_said, read_rows, text_of
from search.methods.candidate import Candidate
from search.runs.digests import LAYOUTS, Digests
from search.runs.layer_table import candidates_in, text_of_layer
from search.runs.pareto import ParetoFront
from search.runs.settings import RunSettings, kept_in

MARKER = "run.json"
TABLE = "pareto.csv"
ROUNDING = 1e-9
WRITTEN = (  # files that searches and evaluations write
    "layers/*.csv", "layouts/*.json", "pareto.csv", "pareto.svg", "evaluation.json", "refined.csv", "samples.json",
    "bounds.csv", "sensitivity.csv", "proxies.csv", "tokens/*.npy", "tokens/*.safetensors", "moments/*/*.safetensors",
    "answers/*.jsonl", "digests/*.json", MARKER,
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. `path` may be a string."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def start(cls, path: Path, settings: RunSettings, overwrite: bool, resume: bool = False) -> "RunFolder":
        """The folder of a new run, or of an earlier run with the same settings, which then resumes. An earlier run is
        replaced with `overwrite`; with `resume` as well, only if its settings differ."""
        folder = cls(path)
        if folder.exists() and (not overwrite or (resume and folder._is_of(settings))):
            if changed := settings.changed(folder.settings):
                what = f"{path} holds a run with another {', '.join(changed)}"
                raise GrouperError(f"{what}: choose another folder, or --overwrite to replace it")
        else:
            refuse_existing(path, MARKER, overwrite, before=folder.answers.name)
            folder._clear(but=settings.options.text)
            path.mkdir(parents=True, exist_ok=True)
            folder.write_settings(settings)
        folder.note_answers(settings.options.text)
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
        except GrouperError:  # not readable
            return False

    def _clear(self, but: str | None) -> None:
        """Remove the files of an earlier run, and nothing else. but: a file of the new run, written already."""
        for pattern in WRITTEN:
            for file in self.path.glob(pattern):
                if str(file.absolute()) != but:
                    file.unlink()

    @property
    def digests(self) -> Digests:
        return Digests(self.path)

    # tokens/, moments/

    @property
    def moments(self) -> Path:
        """Folder of kept calibrations, by model, text and tokens; it may not exist."""
        return self.path / "moments"

    def kept_tokens(self) -> KeptTokens:
        """Kept windows of tokenised texts; there may be none yet."""
        return KeptTokens(self.path / "tokens")

    # answers/

    @property
    def answers(self) -> Path:
        """Folder of text that the model has written itself; it may not exist."""
        return self.path / "answers"

    def note_answers(self, text: str | None) -> None:
        """Record the digest of the run's text, if the model has written it."""
        file = self.answers / Path(text or "").name
        if str(file.absolute()) == text and not self.digests.has(file.stem):
            self.digests.note(file.stem, {file: text_of(file)})

    # run.json

    @property
    def settings(self) -> RunSettings:
        path = self.path / MARKER
        with damage_said(path, "search again, into another folder or with --overwrite"):
            settings = RunSettings.from_json(text_of(path))
            self.digests.check(path.stem, path, kept_in)
        return settings.with_answers_in(self.answers)

    @property
    def sets_aside(self) -> bool:
        """Whether stretches of the text are set aside; not so in a run that an older version began."""
        return not self.exists() or self.settings.set_aside

    def write_settings(self, settings: RunSettings) -> None:
        self.digests.write(self.path / MARKER, settings.to_json(), kept_in)

    # layers/00.csv

    def layer_path(self, layer: int) -> Path:
        return self.path / "layers" / f"{layer:02}.csv"

    def write_layer(self, layer: int, found: dict[str, list[Candidate]]) -> None:
        """Write the candidates of stage 1 for one layer."""
        path, text = self.layer_path(layer), text_of_layer(found)
        self.digests.note(path.stem, {path: text})
        write_text(path, text)

    def read_layer(self, layer: int, query_heads: int, kv_heads: int) -> dict[str, list[Candidate]] | None:
        """Candidates of a layer with these numbers of heads, as write_layer wrote them; None if the layer is not done.
        Raises GrouperError if the file is damaged."""
        if not self.layer_path(layer).is_file():
            return None
        path = self.layer_path(layer)
        with damage_said(path, "delete it, and that layer is searched again"):
            found = candidates_in(path, query_heads, kv_heads)
            self.digests.check(path.stem, path)
        return found

    # layers/00.progress.csv and refined.csv, for reports

    def write_progress(self, layer: int, notes: list[tuple[str, int, float]]) -> None:
        """Write the progress of a layer's search. notes: method, groupings scored so far, mean over KV-head counts of
        the least error."""
        lines = [f"{method},{scored},{error!r}" for method, scored, error in notes]
        path = self.layer_path(layer).with_suffix(".progress.csv")
        write_text(path, "\n".join(["method,scored,error", *lines]) + "\n")

    def read_progress(self, layer: int) -> pd.DataFrame:
        """The table that write_progress wrote; empty if there is none."""
        return table_of(self.layer_path(layer).with_suffix(".progress.csv"), _ProgressRow)

    def note_refined(self, layout: int, merge: str, errors: list[tuple[float, float]]) -> None:
        """Write a layout's refinement, replacing an earlier one. errors: of each layer, before and after."""
        known = self.read_refined()
        known = known[(known["layout"] != layout) | (known["merge"] != merge)]
        new = pd.DataFrame([(layout, merge, layer, *pair) for layer, pair in enumerate(errors)], columns=list(known))
        table = pd.concat([known, new]) if len(known) else new
        write_text(self.path / "refined.csv", table.to_csv(index=False, lineterminator="\n"))

    def forget_measured(self) -> None:
        """Remove the measurements that are not in pareto.csv."""
        for name in ("refined.csv", "samples.json"):
            (self.path / name).unlink(missing_ok=True)

    def read_refined(self) -> pd.DataFrame:
        return table_of(self.path / "refined.csv", _RefinedRow)

    # layouts and front

    def layout_path(self, number: int) -> Path:
        return self.path / "layouts" / f"{number:04}.json"

    def layout(self, number: int) -> HeadLayout:
        path = self.layout_path(number)
        if not path.is_file():
            raise GrouperError(f"{self.path} has no layout {number}: the numbers are in the first column of pareto.csv")
        with damage_said(path, "run the same search again, which writes it anew"):
            layout = HeadLayout.from_json(text_of(path))
            self.digests.check(LAYOUTS, path)
        return layout

    def layout_of(self, row: pd.Series) -> HeadLayout:
        """Layout of a row of pareto.csv. Raises GrouperError if the file holds another layout."""
        layout = self.layout(int(row["layout"]))
        if ";".join(layout.kv_heads) != row["kv_heads"] or abs(layout.kv_ratio - row["kv_ratio"]) > ROUNDING:
            which = f"{self.layout_path(int(row['layout']))} and its row of pareto.csv"
            sizes = f"{layout.kv_ratio:.1%} and {row['kv_ratio']:.1%} of the KV cache"
            raise GrouperError(f"{which} are of two layouts ({sizes}): delete both and run the same search again")
        return layout

    def write_layouts(self, layouts: Sequence[HeadLayout]) -> None:
        """Write layouts by their numbers; files that are correct already are left alone."""
        texts = {self.layout_path(number): layout.to_json() for number, layout in enumerate(layouts)}
        self.digests.note(LAYOUTS, texts)
        for path, text in texts.items():
            if not path.is_file() or path.read_bytes() != text.encode():
                write_text(path, text)

    def front(self, tell: Tell = no_message) -> ParetoFront:
        """The front from pareto.csv. tell: called if somebody edited the table, which is allowed."""
        path = self.path / TABLE
        front = ParetoFront.read(path)
        try:
            self.digests.check(path.stem, path)
        except GrouperError as error:
            tell(f"{path} is taken as it stands ({error})")
        return front

    def write_front(self, front: ParetoFront) -> None:
        self.digests.write(self.path / TABLE, front.to_csv())


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


def table_of(path: Path, kind: type[Row]) -> pd.DataFrame:
    """A table for reports only; empty if it is missing or damaged."""
    found: list[Row] = []
    with suppress(OSError, GrouperError):
        found = read_rows(path, kind)
    return pd.DataFrame([vars(row) for row in found], columns=[f.name for f in fields(kind)])
