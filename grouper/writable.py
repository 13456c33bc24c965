"""Early check that an output can be written, before any work that would be lost."""

import os
from pathlib import Path

from grouper.errors import GrouperError

LONGEST = 200  # bytes of an output's name: systems allow 255, but work in progress next to it has longer names
LONGEST_FOLDER = 255


def refuse_unwritable(output: Path) -> None:
    """Raise GrouperError if `output` cannot be written: it is the root of the file system, its name is too long, it
    would lie inside a file, or in a folder without write permission. An existing output folder may be writable even if
    its parent is not."""
    output = Path(os.path.abspath(output))
    if not output.name:
        raise GrouperError(f"{output} is the root of the file system: choose a folder in it")
    for name, most in ((output.name, LONGEST), *((folder.name, LONGEST_FOLDER) for folder in output.parents)):
        if (length := len(os.fsencode(name))) > most:
            raise GrouperError(f"{name[:20]}... is too long a name ({length} bytes): choose one of at most {most}")
    around = next(folder for folder in output.parents if os.path.lexists(folder))
    if not around.is_dir():
        raise GrouperError(f"{output} cannot be written: {around} is not a folder; choose another output")
    own = output.is_dir() and os.access(output, os.W_OK)
    if not own and not os.access(around, os.W_OK):
        raise GrouperError(f"{output} cannot be written: you may not write in {around}; choose another output")
