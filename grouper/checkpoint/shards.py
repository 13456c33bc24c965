"""Writing of weight files, one by one. Unchanged tensors are copied from file to file without being loaded.

The format is described in header.py. Our own writer copies a shard of gigabytes at the speed of the disk and holds only
changed tensors in memory. Tensors are in the library's own order, larger number types first, so that each one is
aligned.
"""

import json
import struct
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from grouper.checkpoint.checkpoint import INDEX, SINGLE, Checkpoint, read_into
from grouper.checkpoint.header import DTYPES, TensorInfo, read_header
from grouper.errors import GrouperError
from grouper.threads import in_background

CODES = {name: code for code, (name, _) in DTYPES.items()}
INFINITY: dict[str, tuple[type[np.unsignedinteger], int]] = {  # bit pattern of infinity, as an integer of the same size
    "BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F80_0000),
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
}  # fmt: skip
BUFFER = 2**20  # bytes copied or compared at a time; fits a core's own cache


@dataclass(frozen=True)
class Stored:
    """A tensor in a file on the local disk."""

    path: Path
    info: TensorInfo

    @property
    def nbytes(self) -> int:
        return self.info.nbytes


Entry = Tensor | Stored


def stored(checkpoint: Checkpoint, name: str) -> Stored:
    """Location of a tensor of a local checkpoint."""
    info = checkpoint.tensors[name]
    return Stored(checkpoint.folder / info.file, info)


def nothing() -> None:
    """Do nothing: default of `between`, which is called between two pieces and may stop the work by an exception."""


def same_bytes(one: Stored, other: Stored, between: Callable[[], None] = nothing) -> bool:
    """Whether two tensors have the same type, shape and bits. Both are read from disk piece by piece."""
    if (one.info.dtype, one.info.shape) != (other.info.dtype, other.info.shape):
        return False
    size, buffers = one.nbytes, [bytearray(BUFFER) for _ in range(2)]
    with open(one.path, "rb", buffering=0) as first, open(other.path, "rb", buffering=0) as second:
        first.seek(one.info.start), second.seek(other.info.start)
        while size:
            between()
            parts = [memoryview(b)[: min(BUFFER, size)] for b in buffers]
            for file, part in zip((first, second), parts):
                read_into(file, part)
            here, there = (np.frombuffer(part, np.uint8) for part in parts)
            if not np.array_equal(here, there):
                return False
            size -= len(parts[0])
    return True


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, Entry]],
    shard_bytes: int,
    compared: dict[str, Stored] | None = None,
    checksums: dict[str, int] | None = None,
) -> Generator[str, None, None]:
    """Write tensors as safetensors shards with an index, yielding each name. Loaded tensors of two shards are held in
    memory: one shard is written while the tensors of the next are made. Close the iterator if it is not exhausted,
    because a thread may be writing.

    compared: filled, by name, with the copied tensors that were read back and found identical. A shard is read back
    right after it is written, while the system still caches it. checksums: filled with the CRC-32 of each tensor's
    bytes. Raises GrouperError if a copied tensor holds NaN or infinity.

    The shards get their final names (model-00001-of-00003.safetensors) when all are written, and a single one is
    model.safetensors.
    """
    weight_map: dict[str, int] = {}
    shard: dict[str, Entry] = {}
    written = held = total = 0
    given_up, sums = threading.Event(), {} if checksums is None else checksums
    with in_background(given_up.set) as background:
        for name, tensor in tensors:
            if held and held + tensor.nbytes > shard_bytes:
                background(_write_and_compare, folder / f"shard-{written}", shard, compared, sums, given_up)
                shard, held, written = {}, 0, written + 1
            shard[name] = tensor
            weight_map[name] = written
            held += tensor.nbytes
            total += tensor.nbytes
            yield name
        if shard:
            background(_write_and_compare, folder / f"shard-{written}", shard, compared, sums, given_up)
            written += 1
    names = [SINGLE] if written == 1 else [f"model-{i + 1:05}-of-{written:05}.safetensors" for i in range(written)]
    for i, name in enumerate(names):
        (folder / f"shard-{i}").rename(folder / name)
    if written > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {n: names[i] for n, i in sorted(weight_map.items())}}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


class _GivenUp(Exception):
    """Raised to stop a write whose result is not needed any more."""


def _write_and_compare(
    path: Path,
    shard: dict[str, Entry],
    compared: dict[str, Stored] | None,
    checksums: dict[str, int],
    given_up: threading.Event,
) -> None:
    def go_on() -> None:
        if given_up.is_set():
            raise _GivenUp

    with suppress(_GivenUp):
        _write_shard(path, shard, checksums, go_on)
        if compared is not None:
            compared.update(_read_back(path, shard, go_on))


def _read_back(path: Path, shard: dict[str, Entry], between: Callable[[], None]) -> dict[str, Stored]:
    """Copies in a shard that equal their sources, located by the shard's own header. Raises GrouperError for one that
    differs."""
    with open(path, "rb") as file:
        header = dict(read_header(path.name, lambda a, b: _between(file, a, b), path.stat().st_size))
    copied = {name: entry for name, entry in shard.items() if isinstance(entry, Stored)}
    for name, entry in copied.items():
        if name not in header or not same_bytes(entry, Stored(path, header[name]), between):
            raise GrouperError(f"{name} was not written as it was read: is the disk sound? nothing was written")
    return copied


def _between(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _write_shard(path: Path, shard: dict[str, Entry], checksums: dict[str, int], between: Callable[[], None]) -> None:
    kinds = {name: _kind(entry) for name, entry in shard.items()}
    order = sorted(shard, key=lambda name: (-DTYPES[kinds[name][0]][1], name))
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        dtype, shape = kinds[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + shard[name].nbytes]}
        end += shard[name].nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            entry = shard[name]
            between()
            if isinstance(entry, Stored):
                checksums[name] = _copy(name, entry, file, between)
            else:
                numbers = entry.contiguous().flatten().view(torch.uint8).numpy().data
                file.write(numbers)
                checksums[name] = zlib.crc32(numbers)


def _kind(entry: Entry) -> tuple[str, list[int]]:
    """Name of the number type in the safetensors format, and the shape."""
    if isinstance(entry, Stored):
        return entry.info.dtype, list(entry.info.shape)
    return CODES[str(entry.dtype).removeprefix("torch.")], list(entry.shape)


def _copy(name: str, entry: Stored, file: BinaryIO, between: Callable[[], None]) -> int:
    """Copy bytes from file to file through a small buffer, which is faster than the system's copy. Returns their
    CRC-32. Raises GrouperError if they hold NaN or infinity, since no merge checks these tensors."""
    checksum = 0
    for part in pieces(entry, between):
        if not all_finite(part, entry.info.dtype):
            raise GrouperError(f"{name} in {entry.path} holds NaN or infinity: the weights are damaged")
        checksum = zlib.crc32(part, checksum)
        file.write(part)
    return checksum


def checksum_of(entry: Stored) -> int:
    """CRC-32 of a tensor's bytes in its file."""
    checksum = 0
    for part in pieces(entry):
        checksum = zlib.crc32(part, checksum)
    return checksum


def pieces(entry: Stored, between: Callable[[], None] = nothing) -> Iterator[memoryview]:
    """Bytes of a tensor from its file, piece by piece. All pieces share one small buffer."""
    left, buffer = entry.nbytes, memoryview(bytearray(BUFFER))
    with open(entry.path, "rb", buffering=0) as source:
        source.seek(entry.info.start)
        while left:
            between()
            part = buffer[: min(BUFFER, left)]
            read_into(source, part)
            yield part
            left -= len(part)


def all_finite(part: memoryview, dtype: str) -> bool:
    """Whether a piece holds neither NaN nor infinity. In floating point these values have all exponent bits set, so
    without their sign bit they are the largest as integers. dtype: name in the safetensors format."""
    if dtype not in INFINITY:
        return True
    kind, infinity = INFINITY[dtype]
    bits = np.frombuffer(part, kind)
    return not len(bits) or int(np.bitwise_and(bits, np.iinfo(kind).max >> 1).max()) < infinity
