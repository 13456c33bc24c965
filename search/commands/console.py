"""Tables and summaries in a terminal. A command's results go to stdout, all else to stderr."""

from __future__ import annotations

import os
from collections.abc import Iterable
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from grouper.names import printable

if TYPE_CHECKING:  # imports that need torch or pandas stand where they are used: `grouper inspect` answers at once
    import pandas as pd

    from grouper.export import Exported
    from grouper.families.inspection import Inspection
    from search.runs.comparison import Compared
    from search.runs.pareto import ParetoFront


class Terminal(Console):
    """Console that prints names as plain text: no mark-up, and control characters escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


OUT = Terminal()
ERR = Terminal(stderr=True, quiet=bool(os.environ.get("GROUPER_QUIET")))
SHOWN = 16  # rows of the closing table
WIDE = 110  # characters of a line from which all columns fit
LEFT = ("method", "merge", "class")  # headings of columns with words


def closing_table(front: ParetoFront, folder: str) -> None:
    """Print the original, the baselines and layouts along the front, by falling KV bytes."""
    from search.methods.registry import ORIGINAL, baselines

    table = front.table
    judge = front.judge
    measured, nats = judge != "error", judge == "nll"
    by = list(dict.fromkeys([front.size, judge, "error"]))
    shown = table[table[judge].notna()] if measured else spread(table)
    shown = shown.sort_values(by, ascending=[False, *[True] * (len(by) - 1)])
    view = Table(box=None, pad_edge=False, header_style="bold")
    narrow = ERR.width < WIDE
    few = narrow and (nats or "kv_bytes_per_source_token" in table)  # size columns
    over = nats and not (narrow and "accuracy" in shown)
    measures = [] if narrow and nats else ["error"]
    measures += [*(["nats"] if nats and not narrow else []), *(["perplexity"] if nats else [])]
    measures += ["over"] if over else []
    for heading in ("layout", "method", "merge", *sizes(table, narrow=few), "class", *measures):
        view.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    added = [c for c in ("accuracy", "cosine") if c in shown]
    added += [c for c in ("kl", "agreement") if c in shown and (not nats or ERR.width >= WIDE)]
    for column in added:
        view.add_column(column, justify="right", no_wrap=True)
    losses = front.over
    for index, row in shown.iterrows():
        size = sizes(table, row, few)
        cells = [str(row["layout"]), row["method"], row["merge"], *size, row["deploy"]]
        told = {"error": f"{row['error']:.4g}"}
        if nats:
            told |= {"nats": f"{row['nll']:.4f}", "perplexity": f"{row['perplexity']:.2f}"}
            loss, spread_ = losses[index], row.get("nll_se", float("nan"))  # NaN if the original was not measured
            told["over"] = "" if row["method"] == ORIGINAL or loss != loss else f"{loss:+.4f}"
            told["over"] += f" ±{spread_:.4f}" if told["over"] and spread_ == spread_ else ""
        cells += [told[measure] for measure in measures]
        cells += ["" if row[c] != row[c] else f"{row[c]:.4f}" for c in added]
        style = "dim" if row["method"] in baselines() else "bold" if row["method"] == ORIGINAL else None
        view.add_row(*cells, style=style)
    ERR.print(view)
    folder = printable(folder)
    places = f"all in {folder}/pareto.csv, drawn in {folder}/pareto.svg, one page by grouper report {quote(folder)}"
    ERR.print(f"{len(table)} rows, {int(table['on_front'].sum())} on the front; {places}", soft_wrap=True)


def sizes(table: pd.DataFrame, row: pd.Series | None = None, narrow: bool = False) -> list[str]:
    """Cells of a row's sizes, or their headings without a row. An encoder has no cache; a model with encoder and
    decoder also caches every source token. narrow: use few columns."""
    shown, of_source = [], "kv_bytes_per_source_token" in table
    if table["kv_bytes_per_token"].any():
        shown = [("KV cache", "kv_ratio", ".1%")]
        shown += [] if narrow else [("bytes", "kv_bytes_per_token", ",")]
    if of_source and not narrow:
        shown.append(("of source", "kv_bytes_per_source_token", ","))
    if "kv_cache" in table:
        shown.append(("kept as", "kv_cache", ""))
    if "weight_ratio" in table or not shown:
        shown.append(("K, V weights", "weight_ratio" if "weight_ratio" in table else "kv_ratio", ".1%"))
    return [name if row is None else f"{row[column]:{form}}" for name, column, form in shown]


def layouts_table(rows: pd.DataFrame) -> None:
    """Print layouts of a run on stdout, with a column for every measurement."""
    from search.runs.view import counts

    view = Table(box=None, pad_edge=False, header_style="bold")
    measured = rows["nll"].notna().any()
    for heading in ("layout", "method", "merge", *sizes(rows), "class", "error"):
        view.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    for heading in ("nats", "over", "kl") if measured else ():
        view.add_column(heading, justify="right", no_wrap=True)
    view.add_column("KV heads")
    for _, row in rows.iterrows():
        size = sizes(rows, row)
        cells = [str(row["layout"]), row["method"], row["merge"], *size, row["deploy"], f"{row['error']:.4g}"]
        for column, form in (("nll", ".4f"), ("over", "+.4f"), ("kl", ".4f")) if measured else ():
            value = row.get(column, float("nan"))
            cells.append("" if value != value else f"{value:{form}}")
        view.add_row(*cells, counts(row["kv_heads"]))
    wide().print(view)


def comparison_table(compared: list[Compared]) -> None:
    """Print compared runs on stdout, one per line."""
    what = "nats over the original" if compared[0].column == "over" else "error"
    view = Table(title=what, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "model", "methods"):
        view.add_column(heading)
    losses, sizes = list(compared[0].saved), list(compared[0].at)
    for heading in ("hypervolume", *(f"at {s}" for s in sizes), *(f"saved within {loss}" for loss in losses)):
        view.add_column(heading, justify="right")
    for one in compared:
        at = ("" if one.at[s] is None else f"{one.at[s]:.4f}" for s in sizes)
        saved = ("" if one.saved[loss] is None else f"{one.saved[loss]:.1%}" for loss in losses)
        view.add_row(printable(one.run), printable(one.model), one.methods, f"{one.hypervolume:.4f}", *at, *saved)
    wide().print(view)


def wide() -> Console:
    """Console for stdout; lines are not wrapped unless it is a terminal."""
    return OUT if OUT.is_terminal else Terminal(width=200)


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """The stock layouts, some layouts along the front, and the baselines of the same sizes."""
    import pandas as pd

    from search.methods.registry import not_found

    base = table[table["method"].isin(not_found())]
    found = table.drop(base.index)
    stock = found[found["deploy"] == "stock"].sort_values("error").drop_duplicates("kv_ratio")
    along = found[(found["on_front"] == 1) & ~found.index.isin(stock.index)].sort_values("kv_ratio")
    step = max(1, -(-len(along) // max(1, SHOWN - len(stock))))
    known = {1.0, *(stock["kv_ratio"] if len(stock) else base["kv_ratio"])}  # an encoder has no stock layouts
    return pd.concat([base[base["kv_ratio"].isin(known)], stock, along.iloc[::step]])


def inspection(found: Inspection) -> None:
    """Print the facts about a model on stdout, one per line."""
    view = Table(box=None, show_header=False, pad_edge=False)
    view.add_column(style="bold")
    view.add_column()
    per_kv_head = f"{found.query_heads} query heads over {found.kv_heads} KV heads of {found.head_dim}"
    position = f"RoPE, {found.rope}" if not found.rope.startswith("none") else found.rope.replace("none", "no RoPE")
    mib = found.kv_bytes_at_context / 2**20
    cache = (
        f"{found.kv_bytes_per_token:,} bytes per token in {found.kv_dtype}, {mib:,.1f} MiB at {found.context:,} tokens"
    )
    if found.kv_bytes_per_source_token:
        cache += f"; {found.kv_bytes_per_source_token:,} more per token of the source, and as many tokens of it"
    if not found.kv_bytes_per_token:
        cache = "none: it is an encoder; fewer KV heads save weights, and time"
    size = f"{found.parameters / 1e6:,.1f}M parameters in {found.dtype}"
    if found.sliding_layers:
        cache += f" ({found.sliding_layers} layers keep no more than their sliding window)"
    for name, value in (
        ("model", found.model),
        ("family", ", ".join(filter(None, (found.family, found.support, size)))),
        ("layers", found.layers),
        ("heads", f"{per_kv_head}, hidden size {found.hidden_size}"),
        ("position", position),
        ("biases", "on q, k, v" if found.biases else "none"),
        ("KV cache", cache),
        ("fewer KV heads", ", ".join(map(str, found.uniform_kv_heads)) or "none: it is MQA already"),
        ("exports", ", ".join(found.export_classes) or "none"),
    ):
        view.add_row(name, printable(str(value)))
    OUT.print(view)
    if found.kv_bytes_per_token:
        OUT.print(_savings(found))
        for deploy, engines in {s.deploy: s.engines for s in found.savings if s.deploy}.items():
            OUT.print(f"{deploy} runs in {', '.join(engines)}", soft_wrap=True)


def _savings(found: Inspection) -> Table:
    """Table of the savings at each number of KV heads, for the given context, batch and GPU memory."""
    many = f"{found.batch} x {found.context:,} tokens" if found.batch > 1 else f"{found.context:,} tokens"
    card = [f"largest batch on {found.card / 1e9:g} GB"] if found.card else []
    view = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("KV heads", "KV cache", many, *card):
        view.add_column(heading, justify="right", no_wrap=True)
    view.add_column("class", no_wrap=True)
    for s in found.savings:
        fits = [f"{s.largest_batch:,}"] if found.card else []
        view.add_row(str(s.kv_heads), f"{s.kv_ratio:.1%}", f"{s.kv_bytes / 2**30:,.3f} GiB", *fits, s.deploy)
    return view


def exported_summary(exported: Exported, measured: bool = False) -> None:
    """Print what was written and how to load it, on stdout. measured: the model was measured already, so the hint on
    how to measure it is left out."""
    from grouper.export.formats import FORMATS
    from search.commands.options import as_flags

    before, after = exported.kv_bytes_per_token
    place = printable(exported.folder)
    OUT.print(f"wrote {place}, class {exported.export_class}", soft_wrap=True)
    if exported.note:
        OUT.print(as_flags(exported.note), soft_wrap=True)
    if before:
        OUT.print(f"KV cache {before:,} -> {after:,} bytes per token ({after / before:.1%})")
    if exported.kv_bytes_per_source_token[0]:
        before, after = exported.kv_bytes_per_source_token
        OUT.print(f"KV cache {before:,} -> {after:,} bytes per token of the source ({after / before:.1%})")
    before, after = exported.weight_bytes
    padding = f", {exported.padding_bytes:,} ({exported.padding_bytes / after:.1%}) of them zero heads"
    OUT.print(f"weights {before:,} -> {after:,} bytes{padding if exported.padding_bytes else ''}")
    if exported.self_test.passed:
        near = "" if measured else f"; how close that is to the original: grouper evaluate {place}"
        OUT.print(f"self-test passed: {exported.self_test.summary}{near}", soft_wrap=True)
    if exported.pushed:
        OUT.print(f"pushed to {exported.pushed}", soft_wrap=True)
    OUT.print(f"runs in {', '.join(exported.engines)}", soft_wrap=True)
    OUT.print(f"load: {FORMATS[exported.format].how_to_load(exported, place)[0]}", soft_wrap=True)
