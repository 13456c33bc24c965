"""Outputs appear whole or not at all: written beside their place, then renamed. One process at a time writes one; what
a killed one left is swept up by the next."""

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grouper.errors import GrouperError, is_disk_full
from grouper.names import without_secrets
from grouper.writable import refuse_unwritable

STALE = 3600  # seconds since the last byte after which nobody is writing a file any more
WORK = (".refine", ".uptrain", ".logs")  # endings of the folders beside an output that hold work in progress
KEY = re.compile("[0-9a-f]{16}")  # a name that `work_key` gave
BESIDE = re.compile(r"\.([^/\\\s'\"]+?)\.[\w-]+\.partial\b")  # names under which outputs are written


def as_asked_for(message: str) -> str:
    """A message with the names of outputs in the place of those under which they are written.

    >>> as_asked_for("no space for /tmp/.run.json.77-0a1b.partial")
    'no space for /tmp/run.json'
    """
    return BESIDE.sub(r"\1", message)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, without the secrets that somebody may have typed."""
    write_file(path, lambda beside: beside.write_text(without_secrets(text), encoding="utf-8"))


def write_json(path: Path, data: object, indent: int | None = 2) -> None:
    """Replace `path` by JSON with sorted keys."""
    write_text(path, json.dumps(data, indent=indent, sort_keys=True) + "\n")


def work_key(**facts: object) -> str:
    """A name for work in progress on just these facts: strings, numbers, lists, dictionaries. An option that is off
    (None, False, empty) is left out, so that options that are added later, and off unless asked for, change no name."""
    return hashlib.sha256(json.dumps(_without_off(facts), sort_keys=True).encode()).hexdigest()[:16]


def _without_off(value: object) -> object:
    if not isinstance(value, dict):
        return value
    pairs = ((name, _without_off(inner)) for name, inner in value.items())
    return {name: inner for name, inner in pairs if inner or (isinstance(inner, int | float) and inner is not False)}


def sweep_files(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of files that `write_file` was writing there: what a process of this machine
    wrote that is no more, or what nobody has written to for an hour, for others may be writing. name: of one file."""
    for path in folder.glob(f".{glob.escape(name) if name else '*'}.*.partial"):
        with suppress(OSError):
            if path.is_file() and (_is_dead(path) or time.time() - path.stat().st_mtime > STALE):
                path.unlink()


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a name beside `path`, then rename. Errors of a full disk get the file's name, which they often
    lack."""
    sweep_files(path.parent, path.name)
    beside = path.with_name(f".{path.name}.{_writer()}.partial")
    try:
        write(beside)
        os.replace(beside, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except Exception as error:
        if isinstance(error, GrouperError) or not is_disk_full(error):
            raise
        raise GrouperError(f"cannot write {path} ({error})") from error
    finally:
        beside.unlink(missing_ok=True)


def _writer() -> str:
    return f"{os.getpid()}-{zlib.crc32(socket.gethostname().encode()):08x}"  # short: names have 255 bytes


def _is_dead(partial: Path) -> bool:
    """Whether the process that wrote it was one of this machine and is no more."""
    import psutil

    process, _, machine = partial.suffixes[-2][1:].partition("-")
    if not process.isdecimal() or _writer() != f"{os.getpid()}-{machine}":
        return False
    with suppress(OSError, OverflowError):
        return not psutil.pid_exists(int(process))
    return False


def refuse_foreign(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raise GrouperError where the file `path` cannot be written: it is a folder, or is there and not ours, or
    the system does not let it."""
    refuse_unwritable(path)
    if path.is_dir():
        raise GrouperError(f"{path} is a folder: give the name of a file")
    if (path.exists() or path.is_symlink()) and not (path.is_file() and not path.is_symlink() and is_ours(path)):
        raise GrouperError(f"{path} exists and was not written by Grouper: choose another output")


def bears(path: Path, *marks: bytes) -> bool:
    """Whether the head or the tail of a file holds one of these marks."""
    with open(path, "rb") as file:
        head = file.read(4096)
        file.seek(-min(4096, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return any(mark in part for part in (head, file.read()) for mark in marks)


def refuse_existing(folder: Path, marker: str, overwrite: bool) -> None:
    """Raise GrouperError if `folder` holds something that must not be replaced.

    marker: the file by which a folder of ours is known; nothing else is ever replaced, and that only with `overwrite`.
    Nor if the system would not let it be written.
    """
    refuse_unwritable(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise GrouperError(f"{folder} exists and is not a folder: choose another output")
    if not folder.exists() or all(path.is_dir() and not path.is_symlink() for path in folder.rglob("*")):
        return
    if not (folder / marker).is_file():
        raise GrouperError(f"{folder} exists and was not written by Grouper: choose another output folder")
    if not overwrite:
        raise GrouperError(
            f"{folder} exists and is an earlier output: choose another output folder, or `overwrite=True` to replace it"
        )


def refuse_inside(output: Path, *models: Path | None) -> None:
    """Raise GrouperError where an output, or the work in progress beside it, would lie in a model's folder, be it, or
    hold it. models: those that the command reads; None where there is no such folder. Folders of other models are
    known by their files."""
    for ending in ("", *WORK):
        place = Path(os.path.realpath(f"{str(output).rstrip('/') or '/'}{ending}"))
        for model in (m for m in models if m is not None):
            home = Path(os.path.realpath(model))
            if place == home or home in place.parents or place in home.parents:
                raise GrouperError(
                    f"{output} is, holds or lies in the model's own folder: choose another output folder"
                )
        if strange := next((home for home in place.parents if _is_model(home)), None):
            raise GrouperError(f"{output} lies in {strange}, a model's folder: choose another output folder")


def _is_model(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    except OSError:
        return False


def forget_work(folder: Path) -> None:
    """Remove a folder of work in progress (OUTPUT.refine, OUTPUT.uptrain), now that the output is whole: what was begun
    with other options, too, and nothing else."""
    for work in [p for p in folder.glob("*") if KEY.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]:
        shutil.rmtree(work)
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time: raises GrouperError where another one works on this output. The system takes the lock back
    when its holder dies. What such a one left half-written is removed."""
    from filelock import FileLock, Timeout

    refuse_unwritable(folder)
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, or in it where somebody may write there alone.
    place = folder if folder.is_dir() and not os.access(folder.parent, os.W_OK) else folder.parent
    lock, holder = (place / f".{folder.name}.{kind}" for kind in ("lock", "lock-holder"))
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        if not lock.exists():
            raise GrouperError(f"nothing can be written in {place}: choose another output") from error
        who = holder.read_text() if holder.is_file() else "another process"
        raise GrouperError(f"{folder} is being written by {who}: wait for it, or choose another output") from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        sweep(folder)
        yield
    finally:
        holder.unlink(missing_ok=True)
        with suppress(OSError):  # Windows removes no file that is open, but removes this one when it is released
            lock.unlink(missing_ok=True)
        held.release()


def sweep(folder: Path) -> None:
    """Remove what a killed process left of this output, beside it and in it; what it was replacing comes back."""
    for replaced in folder.parent.glob(f".{glob.escape(folder.name)}.*.replaced"):
        if not folder.exists() and (replaced / "old").is_dir():
            os.rename(replaced / "old", folder)
        shutil.rmtree(replaced, ignore_errors=True)
    left = [*folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"), *folder.rglob(".*.partial")]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(inside: Path, name: str = "working") -> Iterator[Path]:
    """A folder for what work on the output `name` needs for a while, on the disk where that will lie."""
    inside.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=inside))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def new_folder(folder: Path, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the block ends well and vanishes when it does not."""
    folder = Path(os.path.abspath(folder))
    refuse_existing(folder, marker, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)
        if folder.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".replaced", dir=folder.parent))
            os.rename(folder, replaced / "old")
            os.rename(beside, folder)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
