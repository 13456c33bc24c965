"""`grouper layouts`: the front of a run as a table, to find a number without opening the CSV."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from grouper.errors import GrouperError
from grouper.export.options import ASKED
from grouper.names import expected
from search.runs.pareto import ParetoFront
from search.runs.picking import best_within
from search.runs.selection import ANY


@dataclass(frozen=True)
class View:
    """Request for rows. sort: a column, or "over" (nats over the original); a leading minus sorts descending. deploy:
    rows of one export class. best_under: only the row that an export takes within this KV ratio (as text). every: all
    rows, not only the front. kv_cache: "any" for rows of all KV cache types on one front by bytes, or the name of a
    type."""

    sort: str = "-kv_ratio"
    deploy: str | None = None
    best_under: str | None = None
    every: bool = False
    kv_cache: str | None = None


def viewed(front: ParetoFront, view: View, tell: Callable[[str], None] = lambda line: None) -> pd.DataFrame:
    """Rows of the front, or all rows, sorted, with the column `over` if nats were measured. The front is by nats if
    any row has them, else by error. tell: receives the reason for the row of `best_under`, and what another export
    class would gain. Raises GrouperError."""
    table = front.table if view.kv_cache is None else front.widened
    table = table.assign(over=front.over_of(table))
    if view.kv_cache not in (None, ANY):
        table = table[table["kv_cache"] == view.kv_cache]
    measured = table["nll"].notna().any()
    if not view.every and view.best_under is None:
        table = table[(table["on_nll_front" if measured else "on_front"] == 1).fillna(False)]
    if view.deploy not in (None, "any"):
        if view.deploy not in ASKED:
            raise GrouperError(f"unknown deployment class {view.deploy!r}: {expected(view.deploy, ASKED)}")
        table = table[table["deploy"] == view.deploy]
    if view.best_under is not None:
        best = best_within(front, view.best_under, view.deploy, view.kv_cache)
        tell(f"layout {best.layout}: {best.why}")
        if best.others:
            tell(best.others)
        table = table.loc[[best.row.name]]
    if table.empty:
        raise GrouperError("no layout is like that: see `grouper layouts RUN --all`")
    column, falling = view.sort.lstrip("-"), view.sort.startswith("-")
    if column not in table:
        raise GrouperError(f"cannot sort by {column!r}: {expected(column, table.columns)}")
    return table.sort_values([column, "layout"], ascending=[not falling, True])


def counts(kv_heads: str) -> str:
    """KV heads per layer, with consecutive equal numbers together, for tables.

    >>> counts("8;8;8;8"), counts("16;8;8;4")
    ('8 x4', '16 8 x2 4')
    """
    found: list[list] = []
    for count in kv_heads.split(";"):
        if found and found[-1][0] == count:
            found[-1][1] += 1
        else:
            found.append([count, 1])
    return " ".join(count if n == 1 else f"{count} x{n}" for count, n in found)
