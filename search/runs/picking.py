"""Choice of one layout of a run: by its number, or the largest within a budget."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from grouper.errors import GrouperError
from grouper.export.hf.slots import can_split
from grouper.shares import rounding_of
from search.methods.registry import ORIGINAL, not_found
from search.runs.columns import JUDGES, called
from search.runs.pareto import ParetoFront
from search.runs.record import REFINED
from search.runs.selection import ANY, SAME, Selection, parse_ratio


@dataclass(frozen=True)
class Picked:
    """A picked layout. layout: its number. why: reason, for messages. others: gain that another export class would
    bring, if any."""

    layout: int
    row: pd.Series
    why: str
    others: str | None = None


@dataclass(frozen=True)
class Budget:
    """A bound on size. size: column of pareto.csv; most: largest value. name: for messages."""

    size: str
    most: float
    name: str

    def told(self, size: float) -> str:
        """A size as text for messages."""
        return f"{size:,} bytes" if self.size == "kv_bytes_per_token" else f"{size:.1%}"


def pick(front: ParetoFront, merge: str, selection: Selection | None = None, **asked: Any) -> Picked:
    """One layout; `asked` are a Selection's fields. merge: the merge of the export, as in pareto.csv
    ("spectral+refine").

    kv_ratio and kv_bytes_per_token are budgets: the largest size within them is taken. deploy: export class to take it
    from; by default `stock`, or any class if no stock layout fits. Among layouts of that size, measured ones come
    first, ranked by nats per token (or the first of JUDGES available) under `merge`, else under the same merge with or
    without refinement. Without measurements the lowest error counts. A baseline is taken only by its number. With
    `kv_cache`, the budget counts bytes of that KV cache type, or of any type: see `_pick_kept`. Raises GrouperError if
    no layout fits.
    """
    s = selection or Selection(**asked)
    s.check()
    if s.layout is not None:
        rows = front.table[front.table["layout"] == s.layout]
        if rows.empty:
            raise GrouperError(f"the run has no layout {s.layout}: the numbers are in the first column of pareto.csv")
        return Picked(s.layout, rows.iloc[0], "named by its number")
    if s.kv_cache is not None:
        return _pick_kept(front, merge, s)
    budget, found = _budget(front, s), _to_split(front.table[~front.table["method"].isin(not_found())], s.tp)
    within = _within(found, budget)
    rows, kind = _of_class(within, found, budget, s.deploy)
    largest = _largest(rows, budget)
    best, column, label = _best(largest, merge)
    measured = f"measured {called(column)}{'' if label == merge else f' ({label})'}"
    which = f"{'highest' if _sign(column) < 0 else 'lowest'} {'error' if column == 'error' else measured}"
    why = f"the {which} of {largest['layout'].nunique()} at the largest {kind}size within {budget.name}"
    if s.deploy is None and not kind:
        why += _nearest_stock(found, budget, merge)
    return Picked(int(best["layout"]), best, why, _gain(within, budget, best, column, merge))


def _pick_kept(front: ParetoFront, merge: str, asked: Selection) -> Picked:
    """The row of fewest nats within a budget of bytes, over all layouts and KV cache types that were measured under
    this merge, with or without refinement. The original with all its heads is among them."""
    budget, table = _budget(front, asked), front.widened
    bare = merge.removesuffix(REFINED)
    original, other = table["method"] == ORIGINAL, table["method"].isin(set(not_found()) - {ORIGINAL})
    table = table[table["nll"].notna() & ~other & (original | table["merge"].isin((bare, bare + REFINED)))]
    table = _to_split(table, asked.tp)
    if asked.kv_cache != ANY:
        table = table[table["kv_cache"] == asked.kv_cache]
    rows, kind = _of_class(_within(table, budget), table, budget, asked.deploy)
    ranked = rows.sort_values(["nll", budget.size, "layout"])
    best, at = ranked.iloc[0], "any type of KV cache" if asked.kv_cache == ANY else f"a KV cache of {asked.kv_cache}"
    why = f"the lowest measured nats per token of {len(ranked)} {kind}rows within {budget.name}, at {at}"
    return Picked(int(best["layout"]), best, why)


def best_within(front: ParetoFront, kv_ratio: str, deploy: str | None = None, kv_cache: str | None = None) -> Picked:
    """The layout that `grouper export RUN --kv-ratio KV_RATIO` takes. Raises GrouperError if there is none."""
    return pick(front, f"{front.own_merge}{REFINED}", kv_ratio=kv_ratio, deploy=deploy, kv_cache=kv_cache)


def representative(front: ParetoFront) -> pd.Series:
    """The row that represents a run: the one that an export at half of the cache takes; if no layout is that small, the
    smallest that can be exported; if none can be exported, the first row."""
    table = front.table
    sizes = table.loc[~table["method"].isin(not_found()) & (table["deploy"] != "none"), front.bounded]
    if sizes.empty:
        return table.iloc[0]
    return best_within(front, repr(max(0.5, float(sizes.min())))).row


def _budget(front: ParetoFront, asked: Selection) -> Budget:
    table = front.table
    if asked.kv_bytes_per_token is not None:
        if "weight_ratio" in table and table["kv_bytes_per_token"].nunique() == 1:
            raise GrouperError("all layouts of this run take as many KV bytes per token: choose by --kv-ratio")
        return Budget("kv_bytes_per_token", asked.kv_bytes_per_token, f"{asked.kv_bytes_per_token} KV bytes per token")
    assert asked.kv_ratio is not None  # `pick` made sure that one of the two is given
    ratio, size = parse_ratio(asked.kv_ratio), front.bounded
    # 0.33 means a third of the heads. Only the sizes of such counts are rounded so, because other sizes are arbitrary.
    uniform = table.loc[table["method"].isin(not_found()) | (table["deploy"] == "stock"), size]
    meant = uniform[(uniform - ratio).abs() <= rounding_of(asked.kv_ratio)]
    return Budget(size, max([ratio, *meant]) + SAME, f"KV ratio {asked.kv_ratio}")


def _to_split(rows: pd.DataFrame, tp: int) -> pd.DataFrame:
    """Rows whose KV heads engines can split or copy over `tp` GPUs. Raises GrouperError if there are none."""
    if tp == 1:
        return rows
    plain = rows[rows["deploy"].isin(("stock", "padded"))]
    fits = plain[plain["kv_heads"].map(lambda counts: can_split(int(str(counts).partition(";")[0]), tp)).astype(bool)]
    if fits.empty:
        cure = f"search with `kv_heads_multiple_of={tp}`, or name a layout by its number, which is padded with KV heads"
        raise GrouperError(f"no layout of this run has KV heads that engines can split over {tp} GPUs: {cure}")
    return fits


def _within(found: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """Rows within the budget. Raises GrouperError if none of them can be exported."""
    rows = found[found[budget.size] <= budget.most]
    if rows.empty:
        least = f"smallest of this run has {budget.told(found[budget.size].min())}" if len(found) else "run found none"
        raise GrouperError(f"no layout within {budget.name}: the {least}")
    if (rows["deploy"] == "none").all():
        differ = "group K and V differently: they can be measured, not exported"
        raise GrouperError(f"all layouts within {budget.name} {differ}")
    return rows


def _of_class(
    within: pd.DataFrame, found: pd.DataFrame, budget: Budget, deploy: str | None
) -> tuple[pd.DataFrame, str]:
    """Rows that can be exported in the requested class, and the class as a word followed by a space ("" for any)."""
    kind = deploy or "stock"
    rows = within[within["deploy"] == kind]
    if len(rows):
        return rows, f"{kind} "
    if deploy in (None, "any"):
        return within[within["deploy"] != "none"], ""
    sizes = found.loc[found["deploy"] == kind, budget.size]
    known = ", ".join(sorted(within["deploy"].unique()))
    nearest = f"the smallest has {budget.told(sizes.min())}" if len(sizes) else f"there are {known} ones"
    raise GrouperError(f"no {deploy} layout within {budget.name}: {nearest}")


def _largest(rows: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    return rows[rows[budget.size] >= rows[budget.size].max() - SAME]


def _sign(column: str) -> int:
    """-1 for columns in which higher is better, else 1."""
    return JUDGES.get(column, 1)


def _best(rows: pd.DataFrame, merge: str) -> tuple[pd.Series, str, str]:
    """The best of rows of one size, the column that it was ranked by, and the merge under which it was measured."""
    bare = merge.removesuffix(REFINED)
    for label in (merge, bare if merge != bare else f"{bare}{REFINED}"):
        for column in (c for c in JUDGES if c in rows):
            measured = rows[(rows["merge"] == label) & rows[column].notna()]
            if len(measured):
                ranked = measured.sort_values([column, "layout"], ascending=[_sign(column) > 0, True])
                return ranked.iloc[0], column, label
    return rows.sort_values(["error", "layout"]).iloc[0], "error", merge


def _nearest_stock(found: pd.DataFrame, budget: Budget, merge: str) -> str:
    """Message about the nearest stock layout, if all stock layouts exceed the budget."""
    stock = found[found["deploy"] == "stock"]
    if stock.empty:
        return ""
    nearest, _, _ = _best(stock[stock[budget.size] <= stock[budget.size].min() + SAME], merge)
    return f"; the nearest stock layout is {nearest['layout']}, of {budget.told(nearest[budget.size])}"


def _gain(within: pd.DataFrame, budget: Budget, best: pd.Series, column: str, merge: str) -> str | None:
    """Message about the gain of another export class within the budget, by the same measure; None without a gain."""
    others = within[~within["deploy"].isin(("none", best["deploy"]))]
    taken = [_best(_largest(rows, budget), merge) for _, rows in others.groupby("deploy")]
    gains = [other for other, by, _ in taken if by == column and _sign(column) * (other[column] - best[column]) < 0]
    if not gains:
        return None
    other = min(gains, key=lambda row: _sign(column) * row[column])
    apart = abs(other[budget.size] - best[budget.size]) > SAME
    at = f" at {budget.told(other[budget.size])}" if apart else ""
    what = f"{called(column)} {other[column]:.4f}{at} (layout {other['layout']})"
    return f"--deploy {other['deploy']} would have {what} instead of {best[column]:.4f}"
