"""Size of a KV cache, and the number of sequences that fit on a GPU."""

import math
from dataclasses import dataclass

from grouper.errors import GrouperError
from grouper.names import expected

BYTES = {  # scales included, for engines' own types
    "float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1, "fp8": 1, "fp8-scaled": 1, "q8_0": 17 / 16,
    "q4_0": 9 / 16, "quanto4": 9 / 16,
}  # fmt: skip
KEPT_IN = ("bfloat16", "float16", "fp8", "fp8-scaled", "q8_0", "q4_0", "quanto4")  # see grouper.cache_types
USABLE = 0.9  # share of a GPU's memory that serving engines use by default; the rest is for activations


def bytes_of(dtype: str) -> float:
    """Bytes per value in the KV cache, its share of the scales included. Raises GrouperError for a dtype that no cache
    supports.

    >>> bytes_of("bfloat16")
    2
    """
    if dtype not in BYTES:
        raise GrouperError(f"unknown KV dtype {dtype!r}: {expected(dtype, BYTES)}")
    return BYTES[dtype]


def bytes_for(numbers: int, dtype: str) -> int:
    """Bytes of this number of values.

    >>> bytes_for(64, "bfloat16"), bytes_for(64, "q4_0")
    (128, 36)
    """
    return math.ceil(numbers * bytes_of(dtype))


def largest_batch(card: int, weights: int, cache_of_one: int) -> int:
    """Number of sequences whose caches fit next to the weights in 90% of a GPU's memory. All sizes are in bytes.

    >>> largest_batch(80 * 10**9, weights=14 * 10**9, cache_of_one=2 * 10**9)
    29
    """
    return max(0, int((USABLE * card - weights) // cache_of_one))


@dataclass(frozen=True)
class Saving:
    """Cache of `batch` sequences with this number of KV heads in every layer, in bytes, and the largest batch on the
    given GPU. deploy: export class of such a model. engines: engines that run it. Both are empty for the original
    model."""

    kv_heads: int
    kv_ratio: float
    kv_bytes: int
    largest_batch: int | None = None
    deploy: str = ""
    engines: tuple[str, ...] = ()
