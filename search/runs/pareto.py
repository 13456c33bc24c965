"""Pareto front of size against error: the layouts of a run, and their table as CSV."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import moocore
import numpy as np
import pandas as pd
from packaging.version import Version

from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.outputs import write_text
from grouper.schema import LARGEST_TABLE, Row, damage_said, rows_in, text_of
from search.methods.registry import ORIGINAL
from search.runs.columns import JUDGES
from search.runs.kept_rows import COLUMN as KV_CACHE
from search.runs.kept_rows import KeptRows

COLUMNS = [
    "layout", "method", "merge", "on_front", "kv_ratio", "kv_bytes_per_token", "kv_heads", "error", "deploy",
    "nll", "perplexity", "on_nll_front", "also_found_by", "weights_bytes",
]  # fmt: skip
# With an encoder: bytes cached of each source token that a decoder attends to. Where the grouped attentions have no
# cache: weights of K and V relative to the original, which are then traded for accuracy instead of the cache.
OF_ENCODERS = ["kv_bytes_per_source_token", "weight_ratio"]
# Option for reading floats exactly: releases of pandas before 3.1 need it; later ones always do so and deprecate it.
EXACT = {"float_precision": "round_trip"} if Version(pd.__version__) < Version("3.1") else {}


@dataclass(frozen=True)
class Scored:
    """A layout from a search. merge: the merge that its error refers to. also_found_by: further methods that found
    it."""

    layout: HeadLayout
    method: str
    error: float
    merge: str
    also_found_by: list[str] = field(default_factory=list)


class ParetoFront:
    """The table of a run: one row per layout and merge. `table` is a pandas DataFrame with the columns of pareto.csv.
    kept: rows of KV cache types other than the run's, which follow the others in pareto.csv."""

    def __init__(self, table: pd.DataFrame, kept: KeptRows | None = None):
        self.table = table
        self.kept = KeptRows.none(table) if kept is None else kept

    @classmethod
    def of(
        cls, layouts: list[Scored], kv_dtype: str, weights: Callable[[HeadLayout], int] | None = None
    ) -> "ParetoFront":
        """A front of these layouts, numbered from 0 in their order, with the columns of the front set. weights:
        function from a layout to the bytes of the model's weights, if known."""
        rows = [
            {
                "layout": number, "method": s.method, "merge": s.merge, "on_front": 0, "kv_ratio": s.layout.kv_ratio,
                "kv_bytes_per_token": s.layout.kv_bytes_per_token(kv_dtype), "kv_heads": ";".join(s.layout.kv_heads),
                "error": s.error, "deploy": s.layout.export_class, "nll": np.nan, "perplexity": np.nan,
                "on_nll_front": pd.NA, "also_found_by": ";".join(s.also_found_by),
                "weights_bytes": pd.NA if weights is None else weights(s.layout),
            }
            for number, s in enumerate(layouts)
        ]  # fmt: skip
        table = pd.DataFrame(rows, columns=COLUMNS)
        every = [s.layout for s in layouts]
        if any("source" in layout.caches for layout in every):
            table[OF_ENCODERS[0]] = [layout.kv_bytes_per_source_token(kv_dtype) for layout in every]
        if any(layout.groups_encoder for layout in every):
            table[OF_ENCODERS[1]] = [layout.weight_ratio for layout in every]
        for column in ("on_nll_front", "weights_bytes"):
            table[column] = table[column].astype("Int64")
        front = cls(table)
        front.mark()
        return front

    @property
    def size(self) -> str:
        """Column of the size that is traded for accuracy: the cache relative to the original's, or, for a grouped
        encoder, which has no cache, the weights of K and V."""
        return "weight_ratio" if "weight_ratio" in self.table else "kv_ratio"

    @property
    def bounded(self) -> str:
        """Column of the size that a KV ratio bounds: the cache, or the weights of K and V if only an encoder was
        grouped and the cache is unchanged."""
        stays = self.size == "weight_ratio" and (self.table["kv_ratio"] == 1).all()
        return "weight_ratio" if stays else "kv_ratio"

    def mark(self) -> None:
        """Set on_front from size and error, and on_nll_front from size and measured nats per token."""
        t = self.table
        t["on_front"] = moocore.is_nondominated(t[[self.size, "error"]].to_numpy(float), keep_weakly=True).astype(int)
        measured = t["nll"].notna()
        t["on_nll_front"] = pd.array([pd.NA] * len(t), dtype="Int64")
        if measured.any():
            points = t.loc[measured, [self.size, "nll"]].to_numpy(float)
            t.loc[measured, "on_nll_front"] = moocore.is_nondominated(points, keep_weakly=True).astype(int)
        self.kept = self.kept.marked(t)

    @property
    def widened(self) -> pd.DataFrame:
        """All rows with the column `kv_cache`, other KV cache types last, on one front by bytes. Raises GrouperError if
        no other type was measured."""
        return self.kept.widened(self.table)

    @property
    def measured_columns(self) -> list[str]:
        """Columns that `evaluate` fills, without the front's: nll and perplexity, and all that it added."""
        return ["nll", "perplexity", *(c for c in self.table.columns if c not in (*COLUMNS, *OF_ENCODERS))]

    def fill(self, index: int, values: dict[str, float]) -> None:
        """Write measurements into a row; missing columns are added."""
        for name in values:
            if name not in self.table:
                self.table[name] = np.nan
        self.table.loc[index, list(values)] = list(values.values())

    @property
    def over(self) -> pd.Series:
        """Nats per token over the original for each row; NaN where the row or the original was not measured."""
        return self.over_of(self.table)

    def over_of(self, table: pd.DataFrame) -> pd.Series:
        """Nats per token over the original for the rows of another table."""
        original = self.table.loc[self.table["method"] == ORIGINAL, "nll"]
        return table["nll"] - (original.iloc[0] if len(original) else np.nan)

    @property
    def judge(self) -> str:
        """Column by which layouts are ranked: the first of JUDGES that was measured, else `error`."""
        return next((c for c in JUDGES if c in self.table and self.table[c].notna().any()), "error")

    @property
    def own_merge(self) -> str:
        """The merge that the run's error refers to."""
        return self.table["merge"].iloc[0]

    def same_layouts(self, other: "ParetoFront") -> bool:
        """Whether this table has the same layouts as the other one, which a search has just made."""
        columns = ["layout", "method", "kv_heads", "error", "also_found_by"]
        mine, theirs = (t.drop_duplicates("layout")[columns].reset_index(drop=True) for t in (self.table, other.table))
        return mine.equals(theirs.astype(mine.dtypes.to_dict()))

    def found_by(self, *methods: str) -> pd.DataFrame:
        """Rows that one of these methods found, first or later."""
        others = self.table["also_found_by"].str.split(";")
        return self.table[
            self.table["method"].isin(methods) | others.map(lambda names: not set(names).isdisjoint(methods))
        ]

    def front(self) -> pd.DataFrame:
        """Rows that no other row beats in both size and error, the smallest first."""
        return self.table[self.table["on_front"] == 1].sort_values([self.size, "layout"])

    def hypervolume(self, column: str = "error", reference: tuple[float, float] | None = None) -> float:
        """Area that the front dominates in (size, `column`), up to `reference` (default: 1 and the column's largest
        value); higher is better."""
        points = self.table[[self.size, column]].dropna().to_numpy(float)
        return float(moocore.hypervolume(points, ref=reference or (1.0, float(points[:, 1].max()))))

    def _repr_html_(self) -> str:
        """HTML for notebooks: the picture, and the front as a table."""
        from tempfile import TemporaryDirectory

        from search.runs.picture import draw

        with TemporaryDirectory() as folder:
            draw(self, Path(folder) / "front.svg", "KV cache against what it costs")
            picture = (Path(folder) / "front.svg").read_text(encoding="utf-8")
        shown = self.front().dropna(axis=1, how="all")
        return f"{picture[picture.index('<svg') :]}{shown.to_html(index=False, max_rows=24)}"

    def to_csv(self) -> str:
        """The table as CSV. Floats keep all their bits."""
        table = self.table
        if len(self.kept):
            first, table = [*COLUMNS, KV_CACHE], self.kept.behind(table)
            table = table[[*first, *(c for c in table if c not in first)]]
        return table.to_csv(index=False, lineterminator="\n")

    def write(self, path: Path) -> None:
        write_text(path, self.to_csv())

    @classmethod
    def read(cls, path: Path) -> "ParetoFront":
        """The front from a CSV file. Raises GrouperError if the table is missing or damaged."""
        if not path.is_file():
            raise GrouperError(f"{path} is not there: was the search finished?")
        with damage_said(path, "delete it and run the search again"):
            text = text_of(path, LARGEST_TABLE)
            found = rows_in(text, _FrontRow)
            if not found:
                raise GrouperError("it has no rows")
            table = pd.DataFrame([vars(row) for row in found])
            rest = pd.read_csv(io.StringIO(text), usecols=lambda c: c not in table, dtype=float, **EXACT)
            of_source = table.pop(OF_ENCODERS[0])
            if of_source.notna().any():
                table[OF_ENCODERS[0]] = of_source.astype("int64")
        table = table.astype({"nll": float, "on_nll_front": "Int64", "weights_bytes": "Int64"}).join(rest)
        table = table.reindex(columns=[*COLUMNS, *(c for c in table if c not in COLUMNS)])
        return cls(*KeptRows.apart(table))


@dataclass(frozen=True)
class _FrontRow(Row):
    """Columns of pareto.csv that are not plain numbers; all others are measurements and ratios. Older runs lack the
    last ones."""

    layout: int
    method: str
    merge: str
    on_front: int
    kv_ratio: float
    kv_bytes_per_token: int
    kv_heads: str
    error: float
    deploy: Literal["stock", "padded", "ragged", "none"]
    nll: float | None = None
    on_nll_front: int | None = None
    also_found_by: str = ""
    weights_bytes: int | None = None
    kv_cache: str = ""
    kv_bytes_per_source_token: int | None = None
