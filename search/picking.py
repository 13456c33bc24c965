"""Which layout of a run to export: by number, by KV ratio or by KV bytes."""

from dataclasses import dataclass
from fractions import Fraction

import pandas as pd

from grouper.errors import GrouperError
from search.methods.registry import BASELINES, ORIGINAL
from search.pareto import ParetoFront

NEAR = 0.005  # how far a layout's kv_ratio may be from the one asked for
DEPLOYS = ("stock", "padded", "ragged", "any")


@dataclass(frozen=True)
class Picked:
    """layout: its number. why: for people. others: what other deployment classes would gain, if anything."""

    layout: int
    row: pd.Series
    why: str
    others: str | None = None


def parse_ratio(text: str) -> float:
    """ "0.5" or "1/3". Raises GrouperError outside (0, 1]."""
    try:
        ratio = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise GrouperError(f"KV ratio {text!r}: expected a number or a fraction like 1/3") from error
    if not 0 < ratio <= 1:
        raise GrouperError(f"KV ratio {text} is out of range: expected more than 0 and at most 1")
    return ratio


def pick(
    front: ParetoFront,
    merge: str,
    *,
    layout: int | None = None,
    kv_ratio: str | None = None,
    kv_bytes_per_token: int | None = None,
    deploy: str | None = None,
) -> Picked:
    """One layout. With kv_ratio, among those within 0.005 of it; with kv_bytes_per_token, among those within that budget.

    Of these the lowest nats per token measured for `merge`, else the lowest error; `stock` layouts where there are any unless `deploy` says
    otherwise; never a baseline, unless named by `layout`.
    """
    if sum(x is not None for x in (layout, kv_ratio, kv_bytes_per_token)) != 1:
        raise GrouperError("say which layout by one of --layout, --kv-ratio and --kv-bytes-per-token")
    if deploy is not None and deploy not in DEPLOYS:
        raise GrouperError(f"unknown deployment class {deploy!r}: expected one of {', '.join(DEPLOYS)}")
    table = front.table
    if layout is not None:
        rows = table[table["layout"] == layout]
        if rows.empty:
            raise GrouperError(f"the run has no layout {layout}: the numbers are in the first column of pareto.csv")
        return Picked(layout, rows.iloc[0], "named by its number")
    table = table[~table["method"].isin([ORIGINAL, *BASELINES])]
    if kv_ratio is not None:
        ratio = parse_ratio(kv_ratio)
        if ratio < table["kv_ratio"].min() - NEAR:
            raise GrouperError(
                f"KV ratio {kv_ratio} is below one head a layer: the lowest of this run is {table['kv_ratio'].min():.4f}"
            )
        rows = table[(table["kv_ratio"] - ratio).abs() <= NEAR]
        if rows.empty:
            nearest = sorted(table["kv_ratio"].unique(), key=lambda r: abs(r - ratio))[:2]
            raise GrouperError(
                f"no layout within {NEAR} of KV ratio {kv_ratio}; the nearest are {' and '.join(f'{r:.4f}' for r in nearest)}"
            )
        asked = f"KV ratio {kv_ratio}"
    else:
        rows = table[table["kv_bytes_per_token"] <= kv_bytes_per_token]
        if rows.empty:
            least = table["kv_bytes_per_token"].min()
            raise GrouperError(f"no layout within {kv_bytes_per_token} KV bytes per token: the smallest takes {least}")
        asked = f"{kv_bytes_per_token} KV bytes per token"
    if (rows["deploy"] == "none").all():
        raise GrouperError(f"all layouts at {asked} group K and V differently: they can be measured, not exported")
    if deploy in (None, "any"):
        allowed = (
            rows[rows["deploy"] == "stock"]
            if deploy is None and (rows["deploy"] == "stock").any()
            else rows[rows["deploy"] != "none"]
        )
    else:
        allowed = rows[rows["deploy"] == deploy]
        if allowed.empty:
            raise GrouperError(
                f"no {deploy} layout at {asked}: it has {', '.join(sorted(rows['deploy'].unique()))} ones"
            )
    best, column = _best(allowed, merge)
    other, other_column = _best(rows[rows["deploy"] != "none"], merge)
    gain = None
    if column == other_column and other[column] < best[column]:
        what = "nats per token" if column == "nll" else "error"
        gain = f"--deploy {other['deploy']} would have {what} {other[column]:.4f} (layout {other['layout']}) instead of {best[column]:.4f}"
    why = f"the lowest {'measured nats per token' if column == 'nll' else 'error'} of {len(allowed)} at {asked}"
    return Picked(int(best["layout"]), best, why, gain)


def _best(rows: pd.DataFrame, merge: str) -> tuple[pd.Series, str]:
    measured = rows[(rows["merge"] == merge) & rows["nll"].notna()]
    rows, column = (measured, "nll") if len(measured) else (rows, "error")
    return rows.sort_values([column, "layout"]).iloc[0], column
