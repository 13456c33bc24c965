"""Repeated self-test of an exported folder (`grouper check`), e.g. after a download or an upgrade."""

from pathlib import Path
from typing import Any

from grouper.attention import MergedLayer
from grouper.checkpoint.shards import checksum_of, stored
from grouper.errors import GrouperError
from grouper.export.classes import CLASSES, class_named
from grouper.export.format import Job, SelfTest, SelfTestFailed
from grouper.export.hf import ragged
from grouper.export.hf.code_names import without_code
from grouper.export.options import ExportOptions
from grouper.export.self_test import run_self_test
from grouper.uptraining.exported import ExportedModel

NAMING = ("auto_map", "architectures", "model_type")  # fields of config.json that decide which code runs
AGAIN = "download or export it again"


def check_folder(folder: str | Path, base: str | None = None, options: ExportOptions | None = None) -> SelfTest:
    """Compare the folder's tensors with the checksums of the export, and its outputs with an independent reference that
    uses the folder's own weights.

    base: the original model (default: the one named in grouper.json). options: memory budget of the self-test. A
    modelling file runs only if this version of Grouper would write the same one. Raises GrouperError if the folder
    cannot be opened in this way, and SelfTestFailed if it differs from what was exported.
    """
    model = ExportedModel.open(folder, base)
    check_checksums(model)
    check_modelling_file(model)
    layers: dict[int, MergedLayer] = {}

    def layer(number: int) -> MergedLayer:
        if number not in layers:
            layers.clear()  # hold one layer at a time
            layers[number] = model.layer(number)
        return layers[number]

    job = Job(model.base, model.layout, layer, options or ExportOptions(), model.around())
    return run_self_test(job, model.folder.folder, class_named(model.export_class, model.tp))


def check_checksums(model: ExportedModel) -> None:
    """Raise SelfTestFailed if a tensor's bytes differ from the exported ones. Older exports have no checksums."""
    for name, checksum in model.facts.get("crc32", {}).items():
        if name not in model.folder:
            raise SelfTestFailed(f"{model.folder.name} lost {name} since it was exported: {AGAIN}")
        if checksum_of(stored(model.folder, name)) != checksum:
            raise SelfTestFailed(f"{name} of {model.folder.name} changed since it was exported: {AGAIN}")


def check_modelling_file(model: ExportedModel) -> None:
    """Raise GrouperError if the folder names code other than the modelling file that this version writes, or gives it
    another name, since a name can lead to another folder or to the Hub."""
    path, (source, fields) = model.folder.folder / ragged.FILE, _code_of(model)
    config, found = model.folder.config, path.read_bytes() if path.is_file() else None
    if found != source or any(config.get(field) != value for field, value in fields.items()):
        raise GrouperError(
            f"{path} is not the file that this version of Grouper writes, or config.json names other code, so nothing "
            "is run: check the folder with the version that wrote it, or export the model again"
        )


def _code_of(model: ExportedModel) -> tuple[bytes | None, dict[str, Any]]:
    """Modelling file, and the fields of config.json that decide which code runs, as this version writes them."""
    export_class = CLASSES[model.export_class]
    if not export_class.own_code:
        return None, {"auto_map": None}
    names = set(model.folder.tensors)
    config = export_class.config(without_code(model.base.config), model.architecture, model.layout, names)
    return ragged.modelling_file(model.architecture).encode(), {field: config[field] for field in NAMING}
