"""Memory that is available, and conversion of sizes such as "8GB"."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from grouper.errors import GrouperError


def parsed_bytes(text: str, what: str) -> int:
    """Amount of memory in bytes. Raises GrouperError.

    >>> parsed_bytes("8GB", "memory"), parsed_bytes("1.5 GiB", "memory"), parsed_bytes("4096", "memory")
    (8000000000, 1610612736, 4096)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", text, re.IGNORECASE)
    if not found:
        raise GrouperError(f"{what} {text!r}: expected an amount like 8GB or 512MiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(unit.lower()) if unit else 0))


def free_memory() -> float:
    """Bytes of main memory that are free or hold reclaimable file cache, as far as this process may use them. Limits of
    a container (cgroup) and of the shell (`ulimit -d`, `-v`) are applied."""
    return float(max(0, min([psutil.virtual_memory().available, *_left_in_groups(), *_left_by_limits()])))


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes left in each control group of this process, for cgroup versions 1 and 2."""
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kind, place = line.split(":", 2)
            if kind not in ("", "memory"):
                continue
            group = root / ("memory" if kind else "") / place.strip("/")
            limit, used = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes") if kind else ("memory.max", "memory.current")
            )
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # "max" means no limit
                    stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                    files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
                    yield int((folder / limit).read_text()) - int((folder / used).read_text()) + files
                if folder == root:
                    break


def _left_by_limits() -> Iterator[int]:
    """Bytes that RLIMIT_DATA and RLIMIT_AS still allow this process to allocate."""
    with suppress(ImportError, OSError, ValueError):  # Linux only
        import resource

        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        for which, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
            limit = resource.getrlimit(which)[0]
            if limit != resource.RLIM_INFINITY:
                yield limit - 1024 * int(status[used].split()[0])
