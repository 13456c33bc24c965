"""Comparison of two versions' outputs for bench/same.py: tables, JSON, tensors, GGUF files, reports.

A difference is the largest one in a tensor, column or number, relative to the largest value there. It is infinite if
nothing can be subtracted: other words, other shapes or rows, something missing.
"""

import base64
import gzip
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

# Keys of JSON that may differ: times, versions, command lines; checksums of tensors, which are compared themselves;
# rounding errors of the self-test.
FREE = {
    "timings", "versions", "command", "search", "export", "uptrain", "tokens_per_second", "transformers_version",
    "crc32", "largest_difference",
}  # fmt: skip
PROSE = {"note", "told"}  # sentences
TEXT = {".md", ".py", ".svg", ".html", ".txt", ".jinja"}  # files for people: changes are listed, but no failure
PACKED = re.compile(r'<script type="application/[a-z-]+" id="data">(.*?)</script>', re.DOTALL)


@dataclass
class Found:
    """Result of a comparison. places: folders of the old and the new version, which count as equal in JSON strings.
    differences: (place, size). notes: new things, and changed words. compared: number of files and tensors."""

    places: tuple[str, str] = ("", "")
    differences: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compared: int = 0

    def differ(self, where: str, how_much: float = math.inf) -> None:
        self.differences.append((where, how_much))

    def names(self, where: str, old: Any, new: Any) -> list[str]:
        """Names in both versions, in the old one's order."""
        for name in old:
            if name not in new:
                self.differ(f"{where} lacks {name}")
        if more := [str(name) for name in new if name not in old]:
            self.notes.append(f"{where} has new {', '.join(more[:6])}{' ...' if more[6:] else ''}")
        return [name for name in old if name in new]

    def arrays(self, where: str, old: np.ndarray, new: np.ndarray) -> None:
        """Compare arrays: equal bit for bit, or the size of the difference."""
        self.compared += 1
        if old.shape != new.shape or old.dtype != new.dtype:
            self.differ(f"{where}: {old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}")
        elif old.tobytes() != new.tobytes():
            a, b = old.astype(np.float64), new.astype(np.float64)
            both = np.isnan(a) & np.isnan(b)
            largest = np.abs(np.where(both, 0.0, a - b)).max() / max(np.nanmax(np.abs(a), initial=0.0), 1e-300)
            self.differ(where, math.inf if math.isnan(largest) else float(largest))

    def data(self, where: str, old: Any, new: Any, key: str = "") -> None:
        """Compare values from JSON."""
        if key in FREE:
            return
        if isinstance(old, dict) and isinstance(new, dict):
            for name in self.names(where, old, new):
                self.data(f"{where} {name}", old[name], new[name], name)
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for i, (a, b) in enumerate(zip(old, new)):
                self.data(f"{where}[{i}]", a, b, key)
        elif isinstance(old, int | float) and isinstance(new, int | float):
            self.arrays(where, np.array([float(old)]), np.array([float(new)]))
        elif key in PROSE and old != new:
            self.notes.append(f"{where} reads otherwise")
        elif isinstance(old, str) and isinstance(new, str) and self.placeless(old, new):
            self.compared += 1
        elif old != new:
            self.differ(f"{where}: {str(old)[:60]!r} became {str(new)[:60]!r}")

    def placeless(self, old: str, new: str) -> bool:
        """Whether the strings are equal except for the folder."""
        return old == new or (all(self.places) and old.replace(self.places[0], self.places[1]) == new)

    def folders(self, old: Path, new: Path) -> None:
        files = [{str(p.relative_to(f)): p for p in sorted(f.rglob("*")) if p.is_file()} for f in (old, new)]
        for name in self.names(old.name, *files):
            self.files(f"{old.name}/{name}", files[0][name], files[1][name])

    def files(self, where: str, old: Path, new: Path) -> None:
        self.compared += 1
        if old.read_bytes() == new.read_bytes():
            return
        kind = {".safetensors": self.tensors, ".gguf": self.gguf, ".csv": self.tables, ".html": self.pages}.get(
            old.suffix
        )
        if kind is not None:
            kind(where, old, new)
        elif old.suffix in (".json", ".jsonl"):
            self.data(where, *(read_json(path) for path in (old, new)))
        elif old.suffix in TEXT:
            self.notes.append(f"{where} reads otherwise")
        else:
            self.differ(where)

    def tensors(self, where: str, old: Path, new: Path) -> None:
        from safetensors.torch import load_file

        before, after = load_file(old), load_file(new)
        for name in self.names(where, before, after):
            one, other = before[name], after[name]
            if one.dtype != other.dtype:
                self.differ(f"{where} {name}: {one.dtype} became {other.dtype}")
            else:  # numpy has no bfloat16, and float32 holds its numbers
                half = one.is_floating_point() and one.itemsize < 4
                self.arrays(f"{where} {name}", *((t.float() if half else t).numpy() for t in (one, other)))

    def gguf(self, where: str, old: Path, new: Path) -> None:
        from gguf import GGUFReader

        before, after = GGUFReader(old), GGUFReader(new)
        for name in self.names(where, before.fields, after.fields):
            self.data(f"{where} {name}", *(as_json(r.fields[name].contents()) for r in (before, after)))
        tensors = [{t.name: t for t in reader.tensors} for reader in (before, after)]
        for name in self.names(where, *tensors):
            one, other = (t[name] for t in tensors)
            if one.tensor_type != other.tensor_type:
                self.differ(f"{where} {name}: {one.tensor_type.name} became {other.tensor_type.name}")
            else:
                self.arrays(f"{where} {name}", one.data, other.data)

    def tables(self, where: str, old: Path, new: Path) -> None:
        """Compare tables: columns of numbers by their largest difference, all others cell by cell."""
        before, after = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (old, new))
        columns = self.names(where, before, after)
        if len(before) != len(after):
            return self.differ(f"{where}: {len(before)} rows became {len(after)}")
        for column in columns:
            one, other = before[column], after[column]
            if one.equals(other):
                continue
            a, b = (pd.to_numeric(c.replace("", "nan"), errors="coerce").to_numpy(float) for c in (one, other))
            if (np.isnan(a) != np.isnan(b)).any() or (one[np.isnan(a)] != other[np.isnan(b)]).any():
                row = int((one != other).to_numpy().argmax())
                self.differ(f"{where} {column}, row {row}: {one[row]!r} became {other[row]!r}")
            else:
                self.arrays(f"{where} {column}", a, b)

    def pages(self, where: str, old: Path, new: Path) -> None:
        """Compare the facts of reports; scripts and style may change."""
        facts = [facts_of(path.read_text(encoding="utf-8")) for path in (old, new)]
        if facts[1] is None:
            self.differ(f"{where}: its facts are not to be found")
        else:
            self.data(where, *facts)


def read_json(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def as_json(value: Any) -> Any:
    """The value with numpy's numbers as Python's."""
    return json.loads(json.dumps(value, default=lambda v: v.tolist()))


def facts_of(page: str) -> Any:
    """The data of a report: JSON, plain or gzip in base64."""
    found = PACKED.search(page)
    if found is None:
        return None
    text = found.group(1).strip()
    return json.loads(text if text.startswith("{") else gzip.decompress(base64.b64decode(text)))
