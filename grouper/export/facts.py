"""Validation of grouper.json, the facts about an exported folder, before anything uses them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.schema import damage_said, document, fitted, text_of

MARKER = "grouper.json"


@dataclass(frozen=True)
class _Report:
    format: str = ""
    deploy: str = ""
    tp: int = 1


@dataclass(frozen=True)
class _Refined:
    tokens: int
    steps: int
    scope: str
    errors: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class _Uptrained:
    method: str
    tokens: int
    steps: int
    teacher: str | None = None


@dataclass(frozen=True)
class _Facts:
    """Types of the facts in grouper.json that commands read. Older versions wrote fewer facts."""

    merge: str
    report: _Report
    layout: dict[str, Any]
    base_model: str | None = None
    base_fingerprint: str | None = None
    method: str | None = None
    fitness: str | None = None
    error: float | None = None
    search: str | None = None
    export: str | None = None
    uptrain: str | None = None
    parameters: dict[str, bool | int | float | str] = field(default_factory=dict)
    measured: dict[str, tuple[float | None, float | None]] | None = None
    refined: _Refined | None = None
    uptrained: _Uptrained | None = None
    crc32: dict[str, int] = field(default_factory=dict)


def read_facts(folder: Path) -> dict[str, Any]:
    """Complete contents of grouper.json, including facts that no command reads. Raises GrouperError if the file is
    missing or damaged."""
    path = folder / MARKER
    if not path.is_file():
        raise GrouperError(f"{folder} has no {MARKER}: expected a folder that `grouper export` wrote")
    with damage_said(path, "export the model again"):
        data = document(text_of(path))
        fitted(data, _Facts)
        HeadLayout.from_data(data["layout"])
    return data
