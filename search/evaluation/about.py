"""Facts beside a model's measurements: what it is, what it was measured on, and how to do it again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grouper.calibration.source import TextSource
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.running.batch import Batch
from grouper.uptraining.exported import ExportedModel
from search.runs.settings import installed_version

PACKAGES = ("kv-grouper", "torch", "transformers")
COMMANDS = ("search", "export", "uptrain")  # facts of grouper.json


@dataclass(frozen=True)
class MeasuredText:
    """A text that was measured on. file: its name, without folders. digest: of its tokens. windows: count, length."""

    file: str
    digest: str
    windows: tuple[int, int]


@dataclass(frozen=True)
class About:
    """Facts of a measured model. kv_heads: of each layer. kv_bytes_per_token: in bfloat16, of the original and of this
    model. merge: None for an unchanged model. refined_tokens, trained_tokens: that it was refined and trained on.
    texts: by name; a single one may be called "". commands: that made and measured it."""

    base_model: str
    export_class: str
    kv_heads: tuple[str, ...]
    kv_bytes_per_token: tuple[int, int]
    merge: str | None
    refined_tokens: int
    trained_tokens: int
    texts: dict[str, MeasuredText]
    commands: tuple[str, ...]
    versions: dict[str, str]
    device: str

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


def about_model(checkpoint: Checkpoint, **more: Any) -> About:
    """Facts of an unchanged model. more: as in `measured_how`."""
    layout = Architecture.of(checkpoint.config).ungrouped
    return _about(checkpoint.title, "original", layout, {}, **measured_how(**more))


def about_export(exported: ExportedModel, **more: Any) -> About:
    """Facts of an export. more: as in `measured_how`."""
    facts = exported.facts
    layout = HeadLayout.from_data(facts["layout"])
    return _about(exported.original.title, exported.export_class, layout, facts, **measured_how(**more))


def measured_how(
    texts: Mapping[str, Batch], source: TextSource | Mapping[str, TextSource] | None, command: str | None, device: str
) -> dict[str, Any]:
    """Facts of the measurement. texts: as read from `source`. command: the command line as typed."""
    sources = {"": source} if isinstance(source, TextSource) else source or {}
    read = {
        name: MeasuredText(Path(sources[name].name).name, batch.digest, (len(batch), batch.tokens))
        for name, batch in texts.items()
    }
    return {"texts": read, "command": command, "device": _named(device)}


def _about(
    base: str,
    export_class: str,
    layout: HeadLayout,
    facts: dict[str, Any],
    texts: dict,
    command: str | None,
    device: str,
) -> About:
    done = [facts.get(name) for name in COMMANDS]
    return About(
        base_model=base,
        export_class=export_class,
        kv_heads=tuple(layout.kv_heads),
        kv_bytes_per_token=(layout.whole.kv_bytes_per_token(), layout.kv_bytes_per_token()),
        merge=facts.get("merge"),
        refined_tokens=(facts.get("refined") or {}).get("tokens", 0),
        trained_tokens=(facts.get("uptrained") or {}).get("tokens", 0),
        texts=texts,
        commands=tuple(dict.fromkeys(one for one in (*done, command) if one)),
        versions={package: installed_version(package) for package in PACKAGES},
        device=device,
    )


def _named(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if "cuda" in device else "CPU"
