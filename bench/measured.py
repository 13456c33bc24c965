"""Time and memory of a command, and the output format of benchmarks."""

import json
import os
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Measured:
    """Measurements of a command. seconds: wall-clock time. peak: bytes of anonymous memory of the process and its
    children together."""

    seconds: float
    peak: int
    code: int
    output: str


def run(*command: object, **environment: str) -> Measured:
    """Run a command to its end, and sample its memory twenty times a second."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    root = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.Error):  # a child that has just ended
            peak = max(peak, sum(map(anonymous, [root, *root.children(recursive=True)])))
        time.sleep(0.05)
    reader.join()
    return Measured(time.perf_counter() - began, peak, process.returncode, "".join(lines))


def anonymous(process: psutil.Process) -> int:
    """Bytes of memory that no file backs, which the machine must really have."""
    try:
        with open(f"/proc/{process.pid}/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def report(name: str, rows: list[dict]) -> None:
    """Print a small table in Markdown, and the same as one line of JSON."""
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(shown(row[c]) for c in columns)} |")
    print(json.dumps({"bench": name, "rows": rows}), flush=True)


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
