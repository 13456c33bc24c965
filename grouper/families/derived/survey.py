"""All model types of the installed transformers that have attention: which ones a proof admits, and why not the others.

Types are proved in processes of their own, because a class may hang or end its process."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Thread

from grouper.errors import GrouperError
from grouper.parsing import json_object
from grouper.progress import Progress, no_progress
from grouper.schema import fitted

LIMIT = 180.0  # seconds for a type


@dataclass(frozen=True)
class Surveyed:
    """One model type. attention: its attention class. entry: whether an entry describes it, not its class. classes:
    export classes. reason: why it is not supported, if so."""

    model_type: str
    attention: str = ""
    kind: str = ""
    supported: bool = False
    entry: bool = False
    seconds: float = 0.0
    reason: str = ""
    classes: list[str] = field(default_factory=list)


def survey_of(types: list[str] | None = None, limit: float = LIMIT, progress: Progress = no_progress) -> list[Surveyed]:
    """Rows of these types (default: all with attention), sorted by type. limit: seconds for each."""
    types, rows = sorted(types or types_with_attention()), []
    count = max(1, (os.cpu_count() or 1) // 2)
    with ThreadPoolExecutor(count) as pool:
        free: Queue[_Worker] = Queue()
        for _ in range(count):
            free.put(_Worker())

        def one(model_type: str) -> Surveyed:
            worker = free.get()
            try:
                return worker.asked(model_type, limit)
            finally:
                free.put(worker)

        for number, row in enumerate(pool.map(one, types), 1):
            rows.append(row)
            progress(number, len(types), row.model_type)
        while not free.empty():
            free.get().stop()
    return [row for row in rows if row.reason != NO_ATTENTION]


NO_ATTENTION = "it has no attention"


def types_with_attention() -> list[str]:
    """Model types of the installed transformers that have a model and are not made of models of other types."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    known = modeling_auto.MODEL_MAPPING_NAMES.keys() | modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    return sorted(CONFIG_MAPPING_NAMES.keys() & known)


class _Worker:
    """A process that proves one type after another; a new one after it ended or was ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lines: Queue[str] = Queue()

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            [sys.executable, "-m", "grouper.families.derived.survey_one"], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        lines = self.lines = Queue()

        def read() -> None:
            for line in process.stdout or ():
                lines.put(line)
            lines.put("")

        Thread(target=read, daemon=True).start()
        return process

    def asked(self, model_type: str, limit: float) -> Surveyed:
        """Row of a type."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{model_type}\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=limit)
        except Empty:
            self.stop()
            return Surveyed(model_type, reason=f"its proof took longer than {limit:.0f} seconds")
        except OSError:  # nobody reads
            line = ""
        if not line:
            self.stop()
            return Surveyed(model_type, reason="its class ended the process")
        try:
            return fitted(json_object(line, "it"), Surveyed)
        except GrouperError as error:
            return Surveyed(model_type, reason=str(error))

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None


def markdown(rows: list[Surveyed]) -> str:
    """Table of supported types, with the number of types and of attention classes, and one of the others."""
    able = [row for row in rows if row.supported]
    kinds = len({row.attention for row in able})
    lines = [f"{len(able)} model types of {kinds} attention classes are supported.", ""]
    lines += ["| type | attention | by | exports |", "| --- | --- | --- | --- |"]
    for row in able:
        by = "entry" if row.entry else "proof"
        lines.append(f"| `{row.model_type}` | {row.attention} | {by} | {', '.join(row.classes)} |")
    reasons: dict[str, list[str]] = {}
    for row in (r for r in rows if not r.supported):
        reasons.setdefault(short(row.reason), []).append(f"`{row.model_type}`")
    lines += ["", "| refused | because |", "| --- | --- |"]
    ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    return "\n".join(lines + [f"| {', '.join(names)} | {shown(why)} |" for why, names in ordered])


def short(why: str) -> str:
    """Reason without what only one class says.

    >>> short("no small model of its class runs (KeyError: x)"), short("the proof that a is b failed: it is (not)")
    ('no small model of its class runs', 'the proof that a is b failed')
    """
    for start, end in (("no small model", " ("), ("the proof that", ":"), ("its class ends", " (")):
        if why.startswith(start):
            return why.partition(end)[0]
    return why


def shown(why: str) -> str:
    """Reason as a cell of a table."""
    return why.replace("|", "\\|").replace("<", "&lt;")
