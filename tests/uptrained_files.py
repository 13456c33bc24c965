"""What a training wrote."""

import json
from pathlib import Path


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the log's speeds."""
    found = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    lines = [json.loads(line) for line in found.pop("uptraining.jsonl").splitlines()]
    found["log"] = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]
    return found
