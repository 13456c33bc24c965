"""Outputs appear whole or not at all: written beside their place, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from grouper.errors import GrouperError


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    write_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: object, indent: int | None = 2) -> None:
    """Replace `path` by JSON with sorted keys."""
    write_text(path, json.dumps(data, indent=indent, sort_keys=True) + "\n")


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a name beside `path`, then rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def refuse_existing(folder: Path, marker: str, overwrite: bool) -> None:
    """Raise GrouperError if `folder` holds something that must not be replaced.

    marker: the file by which a folder of ours is known; nothing else is ever replaced, and that only with `overwrite`.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise GrouperError(f"{folder} exists and is not a folder: choose another output")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / marker).is_file():
        raise GrouperError(f"{folder} exists and was not written by Grouper: choose another output folder")
    if not overwrite:
        raise GrouperError(
            f"{folder} exists and is an earlier output: choose another output folder, or --overwrite to replace it"
        )


@contextmanager
def temporary_folder(inside: Path) -> Iterator[Path]:
    """A folder for what work needs for a while, on the disk where its output will lie."""
    inside.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=".working-", dir=inside))
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
