"""Tables of `evaluate` beside the front: loss by position, tasks, ranking quality of fitnesses, a single model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from grouper.names import printable
from search.commands.console import ERR, OUT
from search.runs.columns import SE, band_of, error_of

if TYPE_CHECKING:  # imports that need torch or pandas stand where they are used
    import pandas as pd

    from grouper.export import Exported
    from search.evaluation.models import EvaluatedModel
    from search.runs.pareto import ParetoFront


def positions_table(front: ParetoFront) -> None:
    """Print nats over the original by position within windows, if the windows were long enough; averaged over all
    texts."""
    from search.methods.registry import ORIGINAL

    columns = [c for c in front.measured_columns if band_of(c) and not SE.search(c) and ":" not in c]
    table = front.table
    originals = table[table["method"] == ORIGINAL]
    shown = table[table[columns].notna().any(axis=1) & (table["method"] != ORIGINAL)] if columns else None
    if shown is None or shown.empty or originals.empty:
        return
    title = "nats over the original, by position in windows"
    view = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for heading in ("layout", "method", "merge", *map(band_of, columns)):
        view.add_column(heading, justify="left" if heading in ("method", "merge") else "right")
    for _, row in shown.sort_values([front.size, "nll"], ascending=[False, True]).iterrows():
        over = (f"{row[c] - originals[c].iloc[0]:+.4f} ±{row[error_of(c)]:.4f}" for c in columns)
        view.add_row(str(row["layout"]), row["method"], row["merge"], *over)
    ERR.print(view)


def tasks_table(front: ParetoFront) -> None:
    """Print the scores of tasks, if any were run: one metric each, with its standard error."""
    columns = [c for c in front.measured_columns if "," in c and not SE.search(c)]
    best = {column.partition(",")[0]: column for column in sorted(columns, key=lambda c: "acc_norm" in c)}
    shown = front.table[front.table[list(best.values())].notna().any(axis=1)] if best else None
    if shown is None or shown.empty:
        return
    view = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layout", "merge", *best.values()):
        view.add_column(heading, justify="left" if heading == "merge" else "right")
    for _, row in shown.iterrows():
        cells = ("" if row[c] != row[c] else f"{row[c]:.3f} ±{row[error_of(c)]:.3f}" for c in best.values())
        view.add_row(str(row["layout"]), row["merge"], *cells)
    ERR.print(view)


def proxies_table(found: pd.DataFrame | None) -> None:
    """Print how well each fitness ranks layouts of one size, if enough layouts were measured."""
    if found is None:
        return
    view = Table(title="what proxies are worth: rank correlation with nats per token", title_style="bold", box=None)
    for heading in ("fitness", "merge", "KV cache", "layouts", "Spearman", "Kendall"):
        view.add_column(heading, justify="left" if heading in ("fitness", "merge") else "right")
    for row in found.itertuples():
        view.add_row(row.fitness, row.merge, f"{row.kv_ratio:.1%}", str(row.layouts), f"{row.spearman:+.2f}",
                     f"{row.kendall:+.2f}")  # fmt: skip
    ERR.print(view)


def evaluated_table(found: EvaluatedModel) -> None:
    """Print the measurements of a model on stdout, with standard errors and the original's values."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    beside = ["original", "over"] if found.original else []
    for heading in ("measured", printable(found.name), "standard error", *beside):
        view.add_column(heading, justify="left" if heading == "measured" else "right")
    for column, value in found.values.items():
        if not SE.search(column):
            error = found.values.get(error_of(column), float("nan"))
            cells = [column, f"{value:.4f}", "" if error != error else f"{error:.4f}"]
            before = (found.original or {}).get(column)
            told = ["", ""] if before is None else [f"{before:.4f}", f"{value - before:+.4f}"]
            view.add_row(*cells, *(told if found.original else []))
    OUT.print(view)


def kept_table(front: ParetoFront) -> None:
    """Print the front over layouts and KV cache types, if types other than the run's own were measured."""
    if not len(front.kept):
        return
    table = front.widened.assign(over=lambda rows: front.over_of(rows))
    shown = table[(table["on_nll_front"] == 1).fillna(False)].sort_values(["kv_ratio", "nll"], ascending=[False, True])
    view = Table(title="heads and precision of the KV cache, by bytes", title_style="bold", box=None)
    for heading in ("layout", "merge", "KV cache as", "bytes", "over"):
        view.add_column(heading, justify="right" if heading in ("layout", "bytes", "over") else "left")
    for _, row in shown.iterrows():
        over = f"{row['over']:+.4f} ±{row['nll_se']:.4f}"
        view.add_row(
            str(row["layout"]), row["merge"], row["kv_cache"] or "the run's own", f"{row['kv_ratio']:.1%}", over
        )
    ERR.print(view)


def kept_cache_lines(exported: Exported) -> None:
    """Print on stdout how to set engines to the KV cache type that the layout was chosen for."""
    from grouper.cache_types import cache_type

    if exported.kv_cache is None:
        return
    kind, (before, after) = cache_type(exported.kv_cache), exported.kv_bytes_per_token
    share = f"{after * kind.bits / 16 / before:.1%} of the original's bytes"
    OUT.print(f"serve with its KV cache as {kind.name} ({kind.says}), {share}", soft_wrap=True)
    for engine, flags in kind.flags.items():
        OUT.print(f"{engine}: {flags}", soft_wrap=True)


def before_and_after(measured: dict[str, list[float | None]]) -> None:
    """Print the measurements of the original and of the regrouped model on stdout, if there are any."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("measured", "original", "regrouped", "over"):
        view.add_column(heading, justify="left" if heading == "measured" else "right")
    for what, (before, after) in measured.items():
        if before is not None and after is not None:
            view.add_row(what, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    if measured:
        OUT.print(view)
