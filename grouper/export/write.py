"""Export of a model: merge, write to a temporary folder next to the output, test, document, then rename."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.compress import Merged, Regrouper
from grouper.errors import GrouperError
from grouper.export.card import model_card
from grouper.export.eval_results import write_eval_results
from grouper.export.facts import MARKER, read_facts
from grouper.export.format import NOTHING, ExportOptions, Format, Job, SelfTest, SelfTestFailed
from grouper.export.formats import FORMATS
from grouper.export.hf.slots import slots_for
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.merging import MERGES
from grouper.model.loadable import check_model
from grouper.originals import remember
from grouper.outputs import new_folder, refuse_inside, temporary_folder, write_json, write_text
from grouper.progress import Progress, no_progress
from grouper.schema import fitted
from grouper.weight_size import weight_bytes


@dataclass(frozen=True)
class Exported:
    """Result of an export. export_class: stock, padded, ragged, or gguf. Sizes in bytes, before and after: KV cache per
    token, cache that a decoder keeps per token of an encoder's source, and weights.

    engines: engines that run it. loader: class or program that loads it. note: why the model was written as
    ragged although the layout allows another class. pushed: the model's address on the Hub. not_refined: reason if
    refinement was requested but not done. kv_cache: KV cache type that the layout was chosen for (see
    grouper.cache_types), if not the default. tp: number of GPUs that engines can split it over, as requested.
    padding_bytes: bytes of zero heads (and of biases of zeros) among the weights of a padded export.
    """

    folder: str
    format: str
    export_class: str
    kv_bytes_per_token: tuple[int, int]
    weight_bytes: tuple[int, int]
    engines: list[str]
    self_test: SelfTest
    loader: str
    note: str | None = None
    pushed: str | None = None
    kv_bytes_per_source_token: tuple[int, int] = (0, 0)
    not_refined: str | None = None
    kv_cache: str | None = None
    tp: int = 1
    padding_bytes: int = 0

    def to_data(self) -> dict[str, Any]:
        """Contents as JSON data. `deploy` is the command line's name of the class."""
        data = asdict(self)
        return {"folder": data.pop("folder"), "deploy": data.pop("export_class"), **data}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> "Exported":
        """Result read from the data of to_data. Raises GrouperError for anything else."""
        return fitted({**data, "export_class": data.get("deploy")}, cls)


def export_model(
    checkpoint: Checkpoint | str | PathLike,
    layout: HeadLayout,
    output: str | PathLike,
    *,
    merge: str = "mean",
    merged: Merged | None = None,
    around: Mapping[str, Tensor] = NOTHING,
    options: ExportOptions | None = None,
    origin: dict | None = None,
    described: HeadLayout | None = None,
    beside: Mapping[str, Path] | None = None,
    progress: Progress = no_progress,
) -> Exported:
    """Merge `checkpoint`'s KV heads according to `layout` and write the model to the folder `output`.

    merge: merge method (a name in grouper.merging.MERGES), unless `merged` gives each layer's weights. around:
    tensors outside the layers that changed, by their names in the checkpoint. origin: facts for grouper.json and the
    model card (method, error, commands). described: the layout to describe there, where `layout` is over a model that
    was regrouped before. beside: files to copy into the folder, by name. Tensors are streamed: one shard and one layer
    are held in memory. Ends with a self-test; a failed export leaves nothing behind. Raises GrouperError.
    """
    options = options or ExportOptions()
    checkpoint = (checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)).local()
    if not layout.caches:  # a hand-made layout may lack the encoder's cache types
        layout = replace(layout, caches=Architecture.of(checkpoint.config).caches)
    form = check_exportable(checkpoint, layout, options)
    refuse_inside(Path(output), checkpoint.folder)
    with new_folder(Path(output), MARKER, options.overwrite) as folder, temporary_folder(folder) as temporary:
        if merged is None:
            merged = Regrouper(checkpoint).merged(layout, MERGES.named(merge), temporary / "merged")
        job = Job(checkpoint, layout, merged, options, around)
        facts = {"merge": merge, **(origin or {})}
        export_class, note = form.write(job, folder, facts, progress)
        try:
            self_test = form.verify(job, folder, export_class)
        except SelfTestFailed as error:
            raise SelfTestFailed(f"{error}; nothing was written") from error
        written = form.weight_bytes(folder)
        report = Exported(
            str(output), options.format, export_class,
            kv_bytes_per_token=kv_bytes(described or layout, options.tp),
            weight_bytes=(checkpoint.nbytes, written), tp=options.tp,
            padding_bytes=written - weight_bytes(checkpoint, layout) if export_class == "padded" else 0,
            engines=form.engines(job.architecture, export_class), self_test=self_test, note=note,
            loader=form.loader(checkpoint.config),
            kv_bytes_per_source_token=kv_bytes_of_source(described or layout),
        )  # fmt: skip
        for name, file in (beside or {}).items():
            shutil.copyfile(file, folder / name)
        _write_facts(folder, job, described or layout, {**facts, "deploy": export_class}, report)
    remember(checkpoint)
    return report


def check_exportable(checkpoint: Checkpoint, layout: HeadLayout, options: ExportOptions) -> Format:
    """Format to write. Raises GrouperError if it would refuse. Called before any expensive work."""
    form = FORMATS.named(options.format)
    form.check(checkpoint, layout, options)
    check_model(checkpoint)
    return form


def kv_bytes(layout: HeadLayout, tp: int = 1) -> tuple[int, int]:
    """Bytes of KV cache per token, before and after; the latter with the zero KV heads that splitting over `tp` GPUs
    takes."""
    before, after = layout.whole.kv_bytes_per_token(), layout.kv_bytes_per_token()
    if tp > 1:
        after = after * slots_for(layout, tp).kv_heads // layout.layers[0].k.kv_heads
    return before, after


def kv_bytes_of_source(layout: HeadLayout) -> tuple[int, int]:
    """Bytes of KV cache per token of an encoder's source, before and after."""
    return layout.whole.kv_bytes_per_source_token(), layout.kv_bytes_per_source_token()


def _write_facts(folder: Path, job: Job, described: HeadLayout, facts: dict, report: Exported) -> None:
    """Write grouper.json, the model card, and benchmark scores if there are any."""
    shown = {k: v for k, v in report.to_data().items() if k not in ("folder", "pushed", "not_refined", "kv_cache")}
    layout = json.loads(described.to_json())
    base = {"base_model": job.checkpoint.title, "base_fingerprint": job.checkpoint.fingerprint}
    everything = {**base, **facts, "layout": layout, "report": shown}
    everything |= {"crc32": dict(sorted(job.checksums.items()))} if job.checksums else {}
    write_json(folder / MARKER, everything, indent=None)
    write_eval_results(folder, facts.get("measured") or {})
    form = FORMATS.named(report.format)
    loading = form.how_to_load(report, form.place_in_card)[1]
    card = model_card(job.checkpoint, described, facts, report, form.library, loading)
    write_text(folder / "README.md", card)


def already_written(folder: Path, layout: HeadLayout, command: str | None) -> Exported | None:
    """Report of an earlier export, if the folder holds this layout exported by this exact command; else None."""
    with suppress(GrouperError):
        facts = read_facts(folder)
        if command is not None and facts.get("export") == command and HeadLayout.from_data(facts["layout"]) == layout:
            return Exported.from_data({**facts["report"], "folder": str(folder)})
    return None
