"""Files of tensors for Grouper's own use: moments, refined layers, trainings. Each safetensors file names itself and
its folder, and holds a digest, so that a swapped or changed file is refused.

Facts are stored in a single field of the header. Several fields would be written in varying order, with different bytes
each time.
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor, uint8

from grouper.errors import GrouperError
from grouper.outputs import write_file
from grouper.parsing import shown
from grouper.schema import damage_said, document, fitted, fitted_texts

T = TypeVar("T")
Tensors = dict[str, Tensor]
FIELD = "grouper"
OLDER = "reached"  # field of a training's facts in older versions; other facts had fields of their own, as text


@dataclass(frozen=True)
class _Header:
    """Header of a file. digest: None in files of older versions, which also lack the file's name."""

    facts: dict[str, Any]
    file: str
    digest: int | None


def save_tensors(path: Path, tensors: Tensors, facts: Any) -> None:
    """Write a file in one step; after a full disk or a kill the old file is still there. facts: a dataclass."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = _Header(asdict(facts), name_of(path), _digest(tensors, asdict(facts)))
    write_file(path, lambda beside: save_file(tensors, beside, metadata={FIELD: json.dumps(asdict(header))}))


def load_tensors(path: Path, kind: type[T], cure: str) -> tuple[Tensors, T]:
    """Tensors and facts as `save_tensors` wrote them, bit for bit, or those of an older version. cure: advice in the
    GrouperError that is raised if the file is damaged, was changed, or is another one."""
    with damage_said(path, cure), _as_ours():
        header, facts = _read_header(path, kind)
        tensors = _tensors_of(path)
        if header.digest is not None and header.digest != _digest(tensors, header.facts):
            raise GrouperError("it changed since it was written")
        return tensors, facts


def facts_of(path: Path, kind: type[T], cure: str) -> T:
    """Facts alone, without checking the digest."""
    with damage_said(path, cure), _as_ours():
        return _read_header(path, kind)[1]


@contextmanager
def _as_ours() -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise GrouperError(str(error)) from error


def name_of(path: Path) -> str:
    """Names of the file and its folder. The folder is named by the inputs that the file was made from."""
    return f"{path.absolute().parent.name}/{path.name}"


def _digest(tensors: Tensors, facts: dict[str, Any]) -> int:
    """CRC-32 of the facts and of all tensors, including their names, types and shapes."""
    found = zlib.crc32(json.dumps(facts).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        if tensor.numel():
            # A copy, because memory used by numpy cannot be resized, as sharded training does with its parameters.
            found = zlib.crc32(tensor.reshape(-1).view(uint8).clone().numpy(), found)  # type: ignore[arg-type]
    return found


def _tensors_of(path: Path) -> Tensors:
    """All tensors, memory-mapped, or read if the disk does not support mapping."""
    try:
        return load_file(path)
    except OSError:
        return load(path.read_bytes())


def _metadata_of(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except OSError:
        with open(path, "rb") as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))
        return document(header.decode(), finite=False).get("__metadata__", {})


def _read_header(path: Path, kind: type[T]) -> tuple[_Header, T]:
    metadata = _metadata_of(path)
    if FIELD in metadata:
        header = fitted(document(metadata[FIELD], finite=False), _Header)
        if header.file != name_of(path):
            raise GrouperError(f"it was written as {shown(header.file)}")
        return header, fitted(header.facts, kind)
    if OLDER in metadata:
        return _Header({}, "", None), fitted(document(metadata[OLDER], finite=False), kind)
    if not metadata.keys() & {f.name for f in fields(kind)}:  # type: ignore[arg-type]
        raise GrouperError("its header holds none of our facts")
    return _Header({}, "", None), fitted_texts(metadata, kind)
