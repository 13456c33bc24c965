"""samples.json of a run: how a text goes on, by the original and under layouts, for people to compare."""

from pathlib import Path

from grouper.errors import GrouperError
from grouper.outputs import write_json
from grouper.parsing import json_object

FILE = "samples.json"
KEYS = {"layout": int, "merge": str, "prompt": str, "text": str}


def note_sample(folder: Path, layout: int, merge: str, prompt: str, text: str) -> None:
    """Add a sample to those of a run; the last one of a layout and merge counts."""
    sample = {"layout": layout, "merge": merge, "prompt": prompt, "text": text}
    known = [one for one in read_samples(folder) if (one["layout"], one["merge"]) != (layout, merge)]
    write_json(folder / FILE, {"samples": [*known, sample]})


def read_samples(folder: Path) -> list[dict]:
    """Samples of a run: layout, merge, prompt, text. Nothing depends on them: missing or damaged ones are left out."""
    path = folder / FILE
    try:
        samples = json_object(path.read_text(encoding="utf-8"), str(path)).get("samples")
    except (OSError, ValueError, GrouperError):
        return []
    found = samples if isinstance(samples, list) else []
    return [{key: one[key] for key in KEYS} for one in found if is_sample(one)]


def is_sample(one: object) -> bool:
    return isinstance(one, dict) and all(type(one.get(key)) is kind for key, kind in KEYS.items())
