"""Weight files, written one by one: tensors that stay as they are go from file to file without being loaded.

The format is that of safetensors_header.py. Writing it ourselves lets a shard of gigabytes be copied at the speed of
the disk, with no more in memory than what changed; tensors are in the library's own order, larger numbers first, so
that each lies where its numbers may.
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
INFINITY: dict[str, tuple[type[np.unsignedinteger], int]] = {  # the bits of infinity, as an integer of the same size
    "BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F80_0000),
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
}  # fmt: skip
BUFFER = 2**20  # bytes that are copied or compared at a time: what a core's own cache holds


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file on this disk."""

    path: Path
    info: TensorInfo

    @property
    def nbytes(self) -> int:
        return self.info.nbytes


Entry = Tensor | Stored


def stored(checkpoint: Checkpoint, name: str) -> Stored:
    """A tensor of a checkpoint on this disk."""
    info = checkpoint.tensors[name]
    return Stored(checkpoint.folder / info.file, info)


def nothing() -> None:
    """What is called between two pieces, unless somebody may want to stop there, by an exception."""


def same_bytes(one: Stored, other: Stored, between: Callable[[], None] = nothing) -> bool:
    """Whether two tensors are of one type and shape and the same to the bit, read from the disk piece by piece."""
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
    """Write tensors as safetensors shards with an index, yielding each name; holds what two shards have of loaded
    tensors: one is written while the next one's are made. compared: filled with what was copied, by name, once the copy
    was read back and found the same; a shard is read back as soon as it is written, while the system still has both in
    memory. checksums: filled with the CRC-32 of each tensor's bytes. Raises GrouperError where a tensor that is copied
    holds NaN or infinity. Close the iterator when it is not gone through: a thread may be writing.

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
    """What is written is not wanted any more."""


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
    """The copies in a shard that are the same as what they were copied from, as its own header finds them. Raises
    GrouperError for one that is not."""
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
    """(the format's word for its numbers, shape)"""
    if isinstance(entry, Stored):
        return entry.info.dtype, list(entry.info.shape)
    return CODES[str(entry.dtype).removeprefix("torch.")], list(entry.shape)


def _copy(name: str, entry: Stored, file: BinaryIO, between: Callable[[], None]) -> int:
    """Bytes from file to file through a small buffer, which is faster than leaving it to the system. Returns their
    CRC-32. Raises GrouperError where they hold NaN or infinity: no merge looks at such a tensor."""
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
    """A tensor's bytes from its file, in one small buffer that each piece replaces."""
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
    """Whether no number of a piece is NaN or infinite: in floating point these are the ones whose exponent has all bits
    set, so that without their sign they are the largest as integers. dtype: in the format's words."""
    if dtype not in INFINITY:
        return True
    kind, infinity = INFINITY[dtype]
    bits = np.frombuffer(part, kind)
    return not len(bits) or int(np.bitwise_and(bits, np.iinfo(kind).max >> 1).max()) < infinity
