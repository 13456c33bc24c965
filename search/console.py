"""What people see in a terminal: tables, bars, summaries. All on stderr but for what a command answers with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from grouper.export import Exported
from grouper.model.inspection import Inspection
from search.methods.registry import BASELINES, ORIGINAL
from search.pareto import ParetoFront

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)
SHOWN = 16  # rows of the closing table


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar of steps: call it with (done, of, note). transformers' own bars stay out of the way."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _progress() as progress:
        task = progress.add_task(what, total=None, note="")

        def update(done: int, of: int, note: str) -> None:
            progress.update(task, completed=done, total=of, note=note)

        yield update


@contextmanager
def search_progress() -> Iterator[Callable[[int, int, str, int, float], None]]:
    """A bar of layers, with method, generation and best error: call it as search.run.Progress says."""
    with _progress() as progress:
        task = progress.add_task("searching", total=None, note="")
        done = set()

        def update(layer: int, layers: int, method: str, generation: int, best: float) -> None:
            done.add(layer)
            note = f"layer {layer}" + (
                f", {method}, generation {generation}, best error {best:.4g}" if generation else ""
            )
            progress.update(task, completed=len(done), total=layers, note=note)

        yield update


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal)


def closing_table(front: ParetoFront, folder: str) -> None:
    """The original, the baselines and a spread of the front, by falling KV bytes."""
    table = front.table
    measured = table["nll"].notna().any()
    base = table[table["method"].isin([ORIGINAL, *BASELINES])]
    found = table[~table.index.isin(base.index)]
    if measured:
        rows = table[table["nll"].notna()]
    else:
        stock = found[found["deploy"] == "stock"].sort_values("error").drop_duplicates("kv_bytes_per_token")
        along = found[(found["on_front"] == 1) & ~found.index.isin(stock.index)].sort_values("kv_bytes_per_token")
        step = max(1, -(-len(along) // max(1, SHOWN - len(stock))))
        rows = pd.concat([base[base["kv_ratio"].isin({1.0, *stock["kv_ratio"]})], stock, along.iloc[::step]])
    rows = rows.sort_values(
        ["kv_bytes_per_token", "nll", "error"] if measured else ["kv_bytes_per_token", "error"],
        ascending=[False, True, True][: 2 + measured],
    )
    view = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (
        "layout",
        "method",
        "merge",
        "KV cache",
        "bytes",
        "class",
        "error",
        *(["nats", "over"] if measured else []),
    ):
        view.add_column(heading, justify="left" if heading in ("method", "merge", "class") else "right", no_wrap=True)
    original = table.loc[table["method"] == ORIGINAL, "nll"].iloc[0]
    for _, row in rows.iterrows():
        cells = [
            str(row["layout"]), row["method"], row["merge"], f"{row['kv_ratio']:.1%}", f"{row['kv_bytes_per_token']:,}", row["deploy"],
            f"{row['error']:.4g}",
        ]  # fmt: skip
        if measured:
            over = row["nll"] - original  # NaN where the original was not measured
            cells += [f"{row['nll']:.4f}", "" if row["method"] == ORIGINAL or over != over else f"{over:+.4f}"]
        style = "dim" if row["method"] in BASELINES else "bold" if row["method"] == ORIGINAL else None
        view.add_row(*cells, style=style)
    ERR.print(view)
    ERR.print(
        f"{len(table)} rows, {int(table['on_front'].sum())} on the front; all in {folder}/pareto.csv, drawn in {folder}/pareto.svg",
        soft_wrap=True,
    )


def inspection(found: Inspection) -> None:
    """On stdout, one fact a line."""
    view = Table(box=None, show_header=False, pad_edge=False)
    view.add_column(style="bold")
    view.add_column()
    mib = found.kv_bytes_at_context / 2**20
    windows = f" ({found.sliding_layers} layers keep no more than their sliding window)" if found.sliding_layers else ""
    counts = ", ".join(map(str, found.uniform_kv_heads)) or "none: it is MQA already"
    for name, value in (
        ("model", found.model),
        ("family", f"{found.family}, {found.parameters / 1e6:,.1f}M parameters in {found.dtype}"),
        ("layers", found.layers),
        ("heads", f"{found.query_heads} query heads over {found.kv_heads} KV heads of {found.head_dim}, hidden size {found.hidden_size}"),
        ("position", f"RoPE, {found.rope}" if not found.rope.startswith("none") else found.rope.replace("none", "no RoPE")),
        ("biases", "on q, k, v" if found.biases else "none"),
        ("KV cache", f"{found.kv_bytes_per_token:,} bytes per token in {found.kv_dtype}, {mib:,.1f} MiB at {found.context:,} tokens{windows}"),
        ("fewer KV heads", counts),
        ("exports", ", ".join(found.deploy) or "none"),
    ):  # fmt: skip
        view.add_row(name, str(value))
    OUT.print(view)


def exported_summary(exported: Exported) -> None:
    """On stdout: what was written and how to load it."""
    before, after = exported.kv_bytes_per_token
    test = exported.self_test
    remote = ", trust_remote_code=True" if exported.deploy == "ragged" else ""
    OUT.print(f"wrote {exported.folder}, class {exported.deploy}", soft_wrap=True)
    if exported.note:
        OUT.print(exported.note, soft_wrap=True)
    OUT.print(f"KV cache {before:,} -> {after:,} bytes per token ({after / before:.1%})")
    OUT.print(f"weights {exported.weight_bytes[0]:,} -> {exported.weight_bytes[1]:,} bytes")
    if exported.deploy == "gguf":
        OUT.print("self-test: the file read back is the merge, head by head")
    else:
        OUT.print(
            f"self-test: logits differ by {test.largest_difference:.1g}, {test.same_tokens} of {test.tokens} greedy tokens agree"
        )
    if exported.pushed:
        OUT.print(f"pushed to {exported.pushed}", soft_wrap=True)
    OUT.print(f"runs in {', '.join(exported.engines)}", soft_wrap=True)
    if exported.deploy == "gguf":
        OUT.print(f"load: llama-cli -m {exported.folder}/model.gguf -fa on", soft_wrap=True)
        return
    OUT.print(f'load: {exported.loader}.from_pretrained("{exported.folder}"{remote})', soft_wrap=True)
