"""How large a KV cache is, and how many sequences fit a card."""

import math
from dataclasses import dataclass

from grouper.errors import GrouperError
from grouper.names import expected

BYTES = {  # those of engines' types count scales
    "float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1, "fp8": 1, "fp8-scaled": 1, "q8_0": 17 / 16,
    "q4_0": 9 / 16, "quanto4": 9 / 16,
}  # fmt: skip
KEPT_IN = ("bfloat16", "float16", "fp8", "fp8-scaled", "q8_0", "q4_0", "quanto4")  # see grouper.cache_types
USABLE = 0.9  # of a card's memory, as serving engines take by default; the rest is for activations


def bytes_of(dtype: str) -> float:
    """Bytes of one number in the KV cache, its share of scales counted. Raises GrouperError for a dtype that no cache
    is kept in.

    >>> bytes_of("bfloat16")
    2
    """
    if dtype not in BYTES:
        raise GrouperError(f"unknown KV dtype {dtype!r}: {expected(dtype, BYTES)}")
    return BYTES[dtype]


def bytes_for(numbers: int, dtype: str) -> int:
    """Bytes of so many numbers.

    >>> bytes_for(64, "bfloat16"), bytes_for(64, "q4_0")
    (128, 36)
    """
    return math.ceil(numbers * bytes_of(dtype))


def largest_batch(card: int, weights: int, cache_of_one: int) -> int:
    """How many sequences fit beside the weights in 90% of a card's memory; all in bytes.

    >>> largest_batch(80 * 10**9, weights=14 * 10**9, cache_of_one=2 * 10**9)
    29
    """
    return max(0, int((USABLE * card - weights) // cache_of_one))


@dataclass(frozen=True)
class Saving:
    """The cache of `batch` sequences with so many KV heads in every layer, in bytes, and the largest batch on the card
    that was asked about. deploy, engines: the class that a model with as few goes out as, and what runs it; nothing for
    the model as it came."""

    kv_heads: int
    kv_ratio: float
    kv_bytes: int
    largest_batch: int | None = None
    deploy: str = ""
    engines: tuple[str, ...] = ()
