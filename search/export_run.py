"""Export a layout of a run: pick it, say why, write it."""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd

from grouper.calibration.text import digest
from grouper.errors import GrouperError
from grouper.export import MARKER, Exported, already_written, check_exportable, export
from grouper.export.hf.padded import MAX_PADDING
from grouper.export.hub import Destination
from grouper.merging import merge_named
from grouper.model.checkpoint import Checkpoint
from grouper.outputs import refuse_existing
from grouper.regroup import Calibration, Regrouper
from search.evaluation import calibration_of
from search.methods.registry import ORIGINAL
from search.pareto import COLUMNS, ParetoFront
from search.picking import pick
from search.run_folder import RunFolder


def export_from_run(
    run: str | Path,
    output: str | Path,
    *,
    layout: int | None = None,
    kv_ratio: str | None = None,
    kv_bytes_per_token: int | None = None,
    deploy: str | None = None,
    merge: str | None = None,
    calibration: Calibration | None = None,
    refine: bool = True,
    scope: str | None = None,
    max_padding: float = MAX_PADDING,
    format: str = "hf",
    dtype: str | None = None,
    device: str = "cpu",
    keep_calibration: str | Path | None = None,
    destination: Destination | None = None,
    overwrite: bool = False,
    command: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Exported:
    """Write the layout of `run` that pick() finds to the folder `output`.

    calibration: text for the merge; with `refine`, layers are then refined on it, in the folder OUTPUT.refine until the export is
    done, so that a killed refinement goes on. Without it, the run's own text calibrates the merge. destination: where on the Hub the
    folder goes, too; one that the same command wrote before is pushed as it is. `tell` gets a line or two.
    """
    if destination:
        destination.check()
    folder = RunFolder.open(Path(run))
    settings = folder.settings
    front = folder.front()
    merge = merge or front.own_merge
    merge_named(merge)
    refine = refine and calibration is not None
    refined = "+refine" if refine else ""
    picked = pick(
        front, merge + refined, layout=layout, kv_ratio=kv_ratio, kv_bytes_per_token=kv_bytes_per_token, deploy=deploy
    )
    heads = folder.layout(picked.layout)
    if heads.only_mean and merge != "mean":
        tell(
            f"layout {picked.layout} regroups query heads too, which only averaging can follow: merged by mean, not {merge}"
        )
        merge = "mean"
    label = merge + refined
    if destination and not overwrite and (written := already_written(Path(output), heads, command)):
        tell(f"{output} is written already")
        return replace(written, pushed=destination.push(Path(output)))
    refuse_existing(Path(output), MARKER, overwrite)
    checkpoint = Checkpoint.open(settings["model"], settings["revision"]).local()
    if checkpoint.fingerprint != settings["fingerprint"]:
        raise GrouperError(
            f"{settings['model']} is not the model that {run} searched (its files changed): search again"
        )
    check_exportable(checkpoint, heads, format, dtype)
    row = picked.row
    tell(
        f"layout {picked.layout} ({row['method']}, {row['deploy']}, {row['kv_ratio']:.1%} of the KV cache): {picked.why}"
    )
    if picked.others:
        tell(picked.others)
    regrouper = Regrouper(checkpoint, calibration or calibration_of(settings, keep=keep_calibration), device)
    origin = {
        "method": row["method"], "fitness": settings["fitness"], "error": float(row["error"]), "layout": picked.layout,
        "search": settings["command"], "export": command, "measured": measured(front, picked.layout, label),
    }  # fmt: skip
    writing = {
        "overwrite": overwrite, "origin": origin, "max_padding": max_padding, "format": format, "dtype": dtype, "progress": _tensors(progress)
    }  # fmt: skip
    if not refine:
        merged = regrouper.merged(heads, merge)
        done = export(checkpoint, heads, output, merge=label, merged=merged, **writing)
        return replace(done, pushed=destination.push(Path(output))) if destination else done
    options = regrouper.refine_options(scope, settings["seed"])
    tokens = regrouper.windows(regrouper.refine_tokens)
    seconds = regrouper.estimate(heads, merge, options)
    tell(
        f"refining {len(heads.layers)} layers on {tokens.numel():,} tokens, {options.steps_for(tokens.numel())} steps each: about {seconds:.0f} s"
    )
    key = f"{checkpoint.fingerprint} {heads.to_json()} {digest(tokens)} {merge} {options}"
    kept = Path(f"{str(output).rstrip('/')}.refine")
    part = kept / hashlib.sha256(key.encode()).hexdigest()[:16]

    def told(layer: int, layers: int, step: int, steps: int, loss: float) -> None:
        if progress:
            progress(layer * steps + step, layers * steps, f"refining layer {layer}, error {loss:.4f}")

    merged = regrouper.refined(heads, merge, options, part, told)
    for layer in range(len(heads.layers)):
        tell(f"layer {layer}: error {merged(layer).before:.4f} -> {merged(layer).after:.4f}")
    origin["refined"] = {"tokens": tokens.numel(), "steps": options.steps_for(tokens.numel()), "scope": options.scope}
    done = export(checkpoint, heads, output, merge=label, merged=merged, **writing)
    shutil.rmtree(part)
    with suppress(OSError):
        kept.rmdir()
    return replace(done, pushed=destination.push(Path(output))) if destination else done


def measured(front: ParetoFront, layout: int, merge: str) -> dict[str, list[float | None]]:
    """What `grouper evaluate` found, for the original and for this layout under this merge: nats per token, perplexity, tasks."""
    table = front.table
    rows = table[(table["layout"] == layout) & (table["merge"] == merge)]
    if rows.empty or rows["nll"].isna().all():
        return {}
    before, after = table[table["method"] == ORIGINAL].iloc[0], rows.iloc[0]
    names = {"nll": "nats per token", "perplexity": "perplexity"} | {c: c for c in table.columns if c not in COLUMNS}
    return {what: [None if pd.isna(r[c]) else float(r[c]) for r in (before, after)] for c, what in names.items()}


def _tensors(progress: Callable[[int, int, str], None] | None) -> Callable[[int, int], None] | None:
    return progress and (lambda done, of: progress(done, of, "writing tensors"))
