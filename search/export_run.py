"""Export a layout of a run: pick it, say why, write it."""

from collections.abc import Callable
from pathlib import Path

from grouper.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export import Exported, export
from search.pick import pick
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
    overwrite: bool = False,
    command: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write the layout of `run` that pick() finds to the folder `output`. `tell` gets a line or two on what was picked and why."""
    folder = RunFolder.open(Path(run))
    settings = folder.settings
    front = folder.front()
    merge = merge or front.table["merge"].iloc[0]
    picked = pick(front, merge, layout=layout, kv_ratio=kv_ratio, kv_bytes_per_token=kv_bytes_per_token, deploy=deploy)
    checkpoint = Checkpoint.open(settings["model"], settings["revision"]).local()
    if checkpoint.fingerprint != settings["fingerprint"]:
        raise GrouperError(f"{settings['model']} is not the model that {run} searched (its files changed): search again")
    row = picked.row
    tell(f"layout {picked.layout} ({row['method']}, {row['deploy']}, {row['kv_ratio']:.1%} of the KV cache): {picked.why}")
    if picked.others:
        tell(picked.others)
    origin = {
        "method": row["method"], "fitness": settings["fitness"], "error": float(row["error"]), "layout": picked.layout,
        "search": settings["command"], "export": command,
    }  # fmt: skip
    return export(checkpoint, folder.layout(picked.layout), output, merge=merge, overwrite=overwrite, origin=origin, progress=progress)
