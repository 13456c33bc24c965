"""Rows of pareto.csv for layouts measured with a KV cache type other than the run's own; their sizes are in bytes of
that type, and they share one front with the others."""

from collections.abc import Iterable
from dataclasses import dataclass

import moocore
import numpy as np
import pandas as pd

from grouper.errors import GrouperError
from search.runs.selection import ANY

COLUMN = "kv_cache"  # empty in rows of the run's own type
POINT = ["kv_ratio", "nll"]


@dataclass(frozen=True)
class KeptRows:
    """Rows of other KV cache types. rows: the columns of the run's table, and `kv_cache`."""

    rows: pd.DataFrame

    @classmethod
    def none(cls, table: pd.DataFrame) -> "KeptRows":
        """An instance without rows, with the columns of this table."""
        return cls(table.iloc[:0].assign(**{COLUMN: ""}))

    @classmethod
    def apart(cls, table: pd.DataFrame) -> "tuple[pd.DataFrame, KeptRows]":
        """Split a table into rows of the run's own type and rows of other types."""
        other = table[COLUMN] != ""
        own = table[~other].drop(columns=COLUMN).reset_index(drop=True)
        return own, cls(table[other].reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.rows)

    def behind(self, table: pd.DataFrame) -> pd.DataFrame:
        """All rows: those of the table, then these."""
        if not len(self):
            return table.assign(**{COLUMN: ""})
        return pd.concat([table.assign(**{COLUMN: ""}), self.rows], ignore_index=True)

    def marked(self, table: pd.DataFrame) -> "KeptRows":
        """These rows with on_nll_front set, on the front by bytes over rows of all types."""
        if not len(self):
            return self
        every = self.behind(table)
        return KeptRows(self.rows.assign(on_nll_front=joint_front(every)[len(table) :].to_numpy()).astype({
            "on_nll_front": "Int64"
        }))  # fmt: skip

    def widened(self, table: pd.DataFrame) -> pd.DataFrame:
        """All rows on one front. Raises GrouperError if no other type was measured."""
        if not len(self):
            raise GrouperError("the run was measured with no other type of KV cache: grouper evaluate RUN --kv-cache "
                               "q8_0,q4_0 does that")  # fmt: skip
        every = self.behind(table)
        return every.assign(on_nll_front=joint_front(every))

    def shown(self, table: pd.DataFrame, kv_cache: str) -> pd.DataFrame:
        """The table followed by rows of this KV cache type, or of all for "any", with the type in the column
        `merge`."""
        every = self.widened(table)
        if kv_cache != ANY:
            every = every[every[COLUMN].isin(("", kv_cache))].reset_index(drop=True)
        named = every["merge"] + ", " + every[COLUMN]
        return every.assign(merge=named.where(every[COLUMN] != "", every["merge"])).drop(columns=COLUMN)

    def lacks(self, row: pd.Series, kv_caches: Iterable[str]) -> bool:
        """Whether a row of the table lacks the measurement with one of these types."""
        return not set(kv_caches) <= set(self.rows.loc[self._of(row), COLUMN])

    def filled(
        self, row: pd.Series, measured: list[str], kv_cache: str, kv_bytes: int, values: dict[str, float]
    ) -> "KeptRows":
        """These rows and one more: a row of the table with another type. kv_bytes: bytes per token of that type.
        measured: columns of measurements; the new row has only those in `values`."""
        sizes = {"kv_ratio": row["kv_ratio"] * kv_bytes / row["kv_bytes_per_token"], "kv_bytes_per_token": kv_bytes}
        known = {**row.to_dict(), **dict.fromkeys(measured, np.nan), **sizes, COLUMN: kv_cache, "on_front": 0}
        new = pd.DataFrame([{**known, **values}])
        new = new.astype(dict.fromkeys(("on_nll_front", "weights_bytes"), "Int64"))
        old = self.rows[~(self._of(row) & (self.rows[COLUMN] == kv_cache))]
        return KeptRows(pd.concat([old, new], ignore_index=True) if len(old) else new)

    def _of(self, row: pd.Series) -> pd.Series:
        return (self.rows["layout"] == row["layout"]) & (self.rows["merge"] == row["merge"])


def joint_front(table: pd.DataFrame) -> pd.Series:
    """1 if no other row has both fewer bytes and fewer nats, else 0; missing where nats were not measured."""
    measured = table["nll"].notna()
    found = pd.Series(pd.NA, index=table.index, dtype="Int64")
    flags = moocore.is_nondominated(table.loc[measured, POINT].to_numpy(float), keep_weakly=True)
    found[measured] = flags.astype(int)
    return found
