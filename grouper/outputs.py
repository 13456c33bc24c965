"""Atomic outputs: written to a temporary name next to their place, then renamed. One process at a time writes an
output, and removes what a killed one left."""

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

STALE = 3600  # seconds since the last write after which a file counts as abandoned
WORK = (".refine", ".uptrain", ".logs")  # endings of the folders next to an output that hold work in progress
KEY = re.compile("[0-9a-f]{16}")  # a name from `work_key`
BESIDE = re.compile(r"\.([^/\\\s'\"]+?)\.[\w-]+\.partial\b")  # temporary names of outputs


def as_asked_for(message: str) -> str:
    """Message with temporary names of outputs replaced by the final ones.

    >>> as_asked_for("no space for /tmp/.run.json.77-0a1b.partial")
    'no space for /tmp/run.json'
    """
    return BESIDE.sub(r"\1", message)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step. Secrets in the text are masked."""
    write_file(path, lambda beside: beside.write_text(without_secrets(text), encoding="utf-8"))


def write_json(path: Path, data: object, indent: int | None = 2) -> None:
    """Replace `path` by JSON with sorted keys."""
    write_text(path, json.dumps(data, indent=indent, sort_keys=True) + "\n")


def work_key(**facts: object) -> str:
    """Name for work in progress that depends on exactly these facts: strings, numbers, lists, dictionaries. Options
    that are off (None, False, empty) are left out, so that new options, off by default, do not change existing
    names."""
    return hashlib.sha256(json.dumps(_without_off(facts), sort_keys=True).encode()).hexdigest()[:16]


def _without_off(value: object) -> object:
    if not isinstance(value, dict):
        return value
    pairs = ((name, _without_off(inner)) for name, inner in value.items())
    return {name: inner for name, inner in pairs if inner or (isinstance(inner, int | float) and inner is not False)}


def sweep_files(folder: Path, name: str | None = None) -> None:
    """Remove temporary files of `write_file` that killed processes left: those of processes of this machine that have
    ended, and those not written to for an hour. Others may still be in use. name: only temporary files of this file."""
    for path in folder.glob(f".{glob.escape(name) if name else '*'}.*.partial"):
        with suppress(OSError):
            if path.is_file() and (_is_dead(path) or time.time() - path.stat().st_mtime > STALE):
                path.unlink()


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name next to `path`, then rename. Errors of a full disk get the name of the file,
    which they often lack."""
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
    return f"{os.getpid()}-{zlib.crc32(socket.gethostname().encode()):08x}"  # short: names are limited to 255 bytes


def _is_dead(partial: Path) -> bool:
    """Whether the file was written by a process of this machine that has ended."""
    import psutil

    process, _, machine = partial.suffixes[-2][1:].partition("-")
    if not process.isdecimal() or _writer() != f"{os.getpid()}-{machine}":
        return False
    with suppress(OSError, OverflowError):
        return not psutil.pid_exists(int(process))
    return False


def refuse_foreign(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raise GrouperError if the file `path` cannot be written: it is a folder, an existing file not written by Grouper,
    or not writable."""
    refuse_unwritable(path)
    if path.is_dir():
        raise GrouperError(f"{path} is a folder: give the name of a file")
    if (path.exists() or path.is_symlink()) and not (path.is_file() and not path.is_symlink() and is_ours(path)):
        raise GrouperError(f"{path} exists and was not written by Grouper: choose another output")


def bears(path: Path, *marks: bytes) -> bool:
    """Whether the head or the tail of a file contains one of these marks."""
    with open(path, "rb") as file:
        head = file.read(4096)
        file.seek(-min(4096, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return any(mark in part for part in (head, file.read()) for mark in marks)


def refuse_existing(folder: Path, marker: str, overwrite: bool, before: str = "") -> None:
    """Raise GrouperError if `folder` holds something that must not be replaced, or is not writable.

    marker: file that identifies a folder written by Grouper. Only such a folder is ever replaced, and only with
    `overwrite`. before: subfolder that may be filled before the marker is written.
    """
    refuse_unwritable(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise GrouperError(f"{folder} exists and is not a folder: choose another output")
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if not folder.exists() or all(before and path.parent == folder / before for path in files):
        return
    if not (folder / marker).is_file():
        raise GrouperError(f"{folder} exists and was not written by Grouper: choose another output folder")
    if not overwrite:
        raise GrouperError(
            f"{folder} exists and is an earlier output: choose another output folder, or `overwrite=True` to replace it"
        )


def refuse_inside(output: Path, *models: Path | None) -> None:
    """Raise GrouperError if an output, or its work in progress, would lie in a model's folder, be that folder, or
    contain it. models: folders of the models that the command reads; None for a model without a local folder. Folders
    of other models are recognised by their files."""
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
    """Remove a folder of work in progress (OUTPUT.refine, OUTPUT.uptrain) once the output is complete, including work
    begun with other options. Foreign files are kept."""
    for work in [p for p in folder.glob("*") if KEY.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]:
        shutil.rmtree(work)
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock an output for one process at a time. Raises GrouperError if another process works on it. The system releases
    the lock when its holder dies. Partial results of such a process are removed."""
    from filelock import FileLock, Timeout

    refuse_unwritable(folder)
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, or inside it if only its own folder is writable.
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
        with suppress(OSError):  # Windows does not remove an open file, but removes this one when it is released
            lock.unlink(missing_ok=True)
        held.release()


def sweep(folder: Path) -> None:
    """Remove what a killed process left of this output, next to it and inside it, and restore the output that it was
    replacing."""
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
    """Temporary folder for work on the output `name`, on the output's disk."""
    inside.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=inside))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def new_folder(folder: Path, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Folder to fill. It becomes `folder` if the block succeeds, and is removed otherwise."""
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
