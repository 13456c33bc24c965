"""Which layout of a run to export: by number, by KV ratio or by KV bytes."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from grouper.errors import GrouperError
from grouper.export.classes import ASKED
from grouper.names import expected
from search.columns import JUDGES, called
from search.methods.registry import not_found
from search.pareto import ParetoFront
from search.shares import parsed_share

NEAR = 0.005  # how far a layout's kv_ratio may be from the one asked for


@dataclass(frozen=True)
class Selection:
    """What is asked for: one of layout (its number), kv_ratio (a number, a fraction or a percentage, as text) and
    kv_bytes_per_token. deploy: the class of the export, stock, padded, ragged or any; stock where there are any unless
    given. merge: how heads become one; the run's own unless given."""

    layout: int | None = None
    kv_ratio: str | None = None
    kv_bytes_per_token: int | None = None
    deploy: str | None = None
    merge: str | None = None


@dataclass(frozen=True)
class Picked:
    """layout: its number. why: for people. others: what other classes would gain, if anything."""

    layout: int
    row: pd.Series
    why: str
    others: str | None = None


def pick(front: ParetoFront, merge: str, selection: Selection | None = None, **asked: Any) -> Picked:
    """One layout; `asked` are a Selection's fields. With kv_ratio, among those within 0.005 of it; with
    kv_bytes_per_token, among those within that budget.

    Of these the lowest nats per token measured for `merge`, else the lowest error; `stock` layouts where there are any
    unless `deploy` says otherwise; never a baseline, unless named by `layout`. Raises GrouperError where there is none.
    """
    s = selection or Selection(**asked)
    if sum(x is not None for x in (s.layout, s.kv_ratio, s.kv_bytes_per_token)) != 1:
        raise GrouperError("say which layout by one of --layout, --kv-ratio and --kv-bytes-per-token")
    if s.deploy is not None and s.deploy not in ASKED:
        raise GrouperError(f"unknown deployment class {s.deploy!r}: {expected(s.deploy, ASKED)}")
    if s.layout is not None:
        rows = front.table[front.table["layout"] == s.layout]
        if rows.empty:
            raise GrouperError(f"the run has no layout {s.layout}: the numbers are in the first column of pareto.csv")
        return Picked(s.layout, rows.iloc[0], "named by its number")
    found = front.table[~front.table["method"].isin(not_found())]
    rows, asked_for = _within(found, s)
    allowed = _of_class(rows, s.deploy, asked_for)
    best, column = _best(allowed, merge)
    extreme = "highest" if JUDGES.get(column, 1) < 0 else "lowest"
    which = "the lowest error" if column == "error" else f"the {extreme} measured {called(column)}"
    why = f"{which} of {len(allowed)} at {asked_for}"
    return Picked(int(best["layout"]), best, why, _gain(rows, best, column, merge))


def parse_ratio(text: str) -> float:
    """ "0.5", "1/3" or "50%". Raises GrouperError outside (0, 1]."""
    return parsed_share(text, "KV ratio", most=1)


def _within(table: pd.DataFrame, asked: Selection) -> tuple[pd.DataFrame, str]:
    """The rows that meet the ratio or the budget, and what that was."""
    if asked.kv_ratio is None:
        if "weight_ratio" in table and table["kv_bytes_per_token"].nunique() == 1:
            raise GrouperError("all layouts of this run take as many KV bytes per token: choose by --kv-ratio")
        rows = table[table["kv_bytes_per_token"] <= asked.kv_bytes_per_token]
        what = f"{asked.kv_bytes_per_token} KV bytes per token"
        if rows.empty:
            raise GrouperError(f"no layout within {what}: the smallest takes {table['kv_bytes_per_token'].min()}")
        return rows, what
    ratio, what = parse_ratio(asked.kv_ratio), f"KV ratio {asked.kv_ratio}"
    encoder_alone = "weight_ratio" in table and (table["kv_ratio"] == 1).all()  # was grouped, and no decoder
    ratios = table["weight_ratio" if encoder_alone else "kv_ratio"]
    least = ratios.min()
    if ratio < least - NEAR:
        raise GrouperError(f"{what} is below one head a layer: the lowest of this run is {least:.4f}")
    rows = table[(ratios - ratio).abs() <= NEAR]
    if rows.empty:
        nearest = sorted(ratios.unique(), key=lambda r: abs(r - ratio))[:2]
        known = " and ".join(f"{r:.4f}" for r in nearest)
        raise GrouperError(f"no layout within {NEAR} of {what}; the nearest are {known}")
    return rows, what


def _of_class(rows: pd.DataFrame, deploy: str | None, asked_for: str) -> pd.DataFrame:
    """Those that may be exported so."""
    exportable, stock = rows[rows["deploy"] != "none"], rows[rows["deploy"] == "stock"]
    if exportable.empty:
        raise GrouperError(f"all layouts at {asked_for} group K and V differently: they can be measured, not exported")
    if deploy is None and len(stock):
        return stock
    if deploy in (None, "any"):
        return exportable
    allowed = rows[rows["deploy"] == deploy]
    if allowed.empty:
        known = ", ".join(sorted(rows["deploy"].unique()))
        raise GrouperError(f"no {deploy} layout at {asked_for}: it has {known} ones")
    return allowed


def _best(rows: pd.DataFrame, merge: str) -> tuple[pd.Series, str]:
    for column in (c for c in JUDGES if c in rows):
        measured = rows[(rows["merge"] == merge) & rows[column].notna()]
        if len(measured):
            return measured.sort_values([column, "layout"], ascending=[JUDGES[column] > 0, True]).iloc[0], column
    return rows.sort_values(["error", "layout"]).iloc[0], "error"


def _gain(rows: pd.DataFrame, best: pd.Series, column: str, merge: str) -> str | None:
    """What another class would gain, if anything."""
    other, other_column = _best(rows[rows["deploy"] != "none"], merge)
    if column != other_column or not JUDGES.get(column, 1) * (other[column] - best[column]) < 0:
        return None
    what = f"{called(column)} {other[column]:.4f} (layout {other['layout']})"
    return f"--deploy {other['deploy']} would have {what} instead of {best[column]:.4f}"
