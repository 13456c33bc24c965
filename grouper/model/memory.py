"""How much memory there is to work with, and amounts of it as people write them."""

import re

import psutil

from grouper.errors import GrouperError


def parsed_bytes(text: str, what: str) -> int:
    """An amount of memory in bytes. Raises GrouperError.

    >>> parsed_bytes("8GB", "--memory"), parsed_bytes("1.5 GiB", "--memory"), parsed_bytes("4096", "--memory")
    (8000000000, 1610612736, 4096)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", text, re.IGNORECASE)
    if not found:
        raise GrouperError(f"{what} {text!r}: expected an amount like 8GB or 512MiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(unit.lower()) if unit else 0))


def free_memory() -> float:
    """Bytes of main memory that are free or hold what can be read again."""
    return float(psutil.virtual_memory().available)
