"""Proofs of earlier commands, kept below the user's cache folder: one file for each class, version and set of quirks. A
damaged file counts as none, and the class is proved again."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError
from grouper.families.family import Family
from grouper.originals import home
from grouper.outputs import write_json
from grouper.schema import document, fitted, text_of

FORM = 1  # of the proof: raise it when the steps of a proof change


@dataclass(frozen=True)
class Proved:
    """A family that was proved. attention: name of its attention class. seconds: time that the proof took."""

    family: Family
    attention: str
    seconds: float


def key_of(model_type: str, settings: dict[str, Any]) -> str:
    """Key of a proof. settings: of a small model, which keep all quirks of the model and none of its sizes."""
    libraries = {name: version(name) for name in ("transformers", "torch")}
    facts = {"form": FORM, "model_type": model_type, "settings": settings, **libraries}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def keep(key: str, proof: Proved) -> None:
    """Store a proof. Failure is ignored, because it can be proved again."""
    with suppress(OSError, RuntimeError):
        path = _record(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(proof))


def kept(key: str) -> Proved | None:
    """Proof with this key; None if there is none, or if its file does not hold exactly what `keep` writes."""
    with suppress(OSError, RuntimeError, GrouperError):
        data = document(text_of(_record(key)))
        found = fitted(data, Proved)
        if _plain(asdict(found)) == data and found.family.proved:
            return found
    return None


def _plain(value: Any) -> Any:
    """Value as JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _record(key: str) -> Path:
    return home() / "proofs" / f"{key}.json"
