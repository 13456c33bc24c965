"""A version of Grouper that bench/same.py runs: its code, and its commands, run as children of this process."""

import importlib.util
import os
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# Import packages once: a command is a child of this process, and starts where `python -m` would.
PACKAGES = (
    "torch", "torch._dynamo", "torch.optim", "transformers", "transformers.dynamic_module_utils",
    "transformers.modeling_utils", "transformers.generation.utils", "accelerate", "scipy.stats", "moocore",
    "matplotlib.pyplot", "plotly.offline", "gguf", "rich.console", "typer",
)  # fmt: skip


def import_packages() -> None:
    for package in PACKAGES:
        importlib.import_module(package)


@dataclass(frozen=True)
class Version:
    """A version of Grouper. tree: folder of the code. work: folder in which commands run, with one folder per model, so
    that both versions see the same relative paths."""

    name: str
    tree: Path
    work: Path

    def command(self, *arguments: object) -> None:
        """Run `python -m cli ARGUMENTS` in this process."""
        sys.argv = ["cli", *map(str, arguments)]
        runpy.run_module("cli", run_name="__main__", alter_sys=True)

    def start(self, folder: str, log: str, work: Callable[[], object]) -> int:
        """Start a child that does `work` in work/FOLDER with this version's modules. Its output goes to LOG.out and
        LOG.err. Returns its process id."""
        place = self.work / folder
        place.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        if child := os.fork():
            return child
        code = 70
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.chdir(place)
            for number, name in enumerate((os.devnull, f"{log}.out", f"{log}.err")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            sys.path[0] = os.environ["PYTHONPATH"] = str(self.tree)  # instead of this script's folder
            modules = str(self.work / "modules")  # transformers caches modelling files by folder name
            sys.modules["transformers.dynamic_module_utils"].HF_MODULES_CACHE = modules
            os.environ["HF_MODULES_CACHE"] = modules
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)


def ended(*children: int) -> list[int]:
    """Exit statuses of the children, negative for a signal. Children are ended with this process."""
    try:
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    except BaseException:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        raise


@contextmanager
def checked_out(repository: Path, commit: str, tree: Path) -> Iterator[None]:
    """A temporary git worktree of this commit."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, commit], cwd=repository, check=True)
    try:
        yield
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=repository, check=True)


def copy_working_tree(repository: Path, tree: Path) -> None:
    """Copy the working tree without ignored files, so that it may be edited meanwhile."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=repository, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (repository / name).is_file():  # else it was deleted without a commit
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, tree / name)


def check_code(version: Version) -> None:
    """Stop if another copy of Grouper would be run than the intended one."""

    def places() -> None:
        names = ("cli", "grouper", "search", "fitness")
        print(*(importlib.util.find_spec(name).origin for name in names), sep="\n")

    if ended(version.start(".", "places", places)) != [0]:
        raise SystemExit((version.work / "places.err").read_text())
    for place in (version.work / "places.out").read_text().splitlines():
        if not Path(place).is_relative_to(version.tree):
            raise SystemExit(f"{version.name} would run {place}, not {version.tree}")
