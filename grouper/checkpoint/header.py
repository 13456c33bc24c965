"""Header of a safetensors file: names, shapes, dtypes and byte ranges of its tensors.

Format: 8 bytes little-endian length of the header, the header as JSON, then the tensors. Our own reader treats a
folder, the Hub's cache and byte ranges over HTTP alike. Tensors in local files are still read by the safetensors
library.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from grouper.errors import GrouperError

if TYPE_CHECKING:
    import torch

DTYPES = {  # torch's name, bytes per number
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}  # fmt: skip
MOST_DIMENSIONS = 64  # largest rank of a tensor, as in torch
LARGEST_HEADER = 100_000_000  # bytes, the library's own limit


@dataclass(frozen=True)
class TensorInfo:
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte offset in the file
    stop: int

    @property
    def is_well_formed(self) -> bool:
        """Whether every field has the expected type, since headers are JSON and may hold anything."""
        whole = (*self.shape, self.start, self.stop)
        few = len(self.shape) <= MOST_DIMENSIONS  # checked before the sizes are multiplied
        return isinstance(self.dtype, str) and few and all(type(n) is int and abs(n) < 2**63 for n in whole)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def dtype_name(self) -> str:
        """Name of the dtype in torch. Raises GrouperError for a dtype that torch lacks."""
        if self.dtype not in DTYPES:
            raise GrouperError(
                f"{self.file} holds tensors of type {self.dtype}: dequantise the model to bfloat16 first"
            )
        return DTYPES[self.dtype][0]

    @property
    def torch_dtype(self) -> "torch.dtype":
        import torch  # headers alone do not need torch, so that `grouper inspect` answers at once

        return getattr(torch, self.dtype_name)


def read_header(file: str, read: Callable[[int, int], bytes], size: int) -> dict[str, TensorInfo]:
    """Tensors in one file. read(start, stop): returns its bytes. size: length of the file in bytes.

    Raises GrouperError where the file is truncated or corrupt.
    """

    def corrupt(why: str) -> GrouperError:
        return GrouperError(f"{file} is truncated or corrupt ({why}): download or save it again")

    if size < 8:
        raise corrupt(f"{size} bytes")
    (length,) = struct.unpack("<Q", read(0, 8))
    if length > min(size - 8, LARGEST_HEADER):
        raise corrupt(f"a header of {length} bytes in a file of {size}")
    try:
        header = json.loads(read(8, 8 + length))
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(
                file, entry["dtype"], tuple(entry["shape"]), *(8 + length + offset for offset in entry["data_offsets"])
            )
            for name, entry in header.items()
        }
        if not all(info.is_well_formed for info in tensors.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt("its header cannot be read") from error
    for name, info in tensors.items():
        if not 8 + length <= info.start <= info.stop <= size:
            raise corrupt(f"{name} ends at byte {info.stop} of {size}")
        if any(n < 0 for n in info.shape):
            raise corrupt(f"{name} has shape {list(info.shape)}")
        if info.dtype in DTYPES and info.nbytes != info.elements * DTYPES[info.dtype][1]:
            raise corrupt(f"{name} has {info.nbytes} bytes for shape {list(info.shape)}")
    return tensors
