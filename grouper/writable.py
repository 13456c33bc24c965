"""Places that cannot be written to, found before there is work that would be lost."""

import os
from pathlib import Path

from grouper.errors import GrouperError

LONGEST = 200  # bytes of an output's name: systems take 255, and work in progress beside it has a longer one
LONGEST_FOLDER = 255


def refuse_unwritable(output: Path) -> None:
    """Raise GrouperError where the system would not let `output` be written: its name is too long, it would lie in a
    file, or in a folder that only others may write to. A folder of ours may be written to where the one around it may
    not."""
    output = Path(os.path.abspath(output))
    for name, most in ((output.name, LONGEST), *((folder.name, LONGEST_FOLDER) for folder in output.parents)):
        if (length := len(os.fsencode(name))) > most:
            raise GrouperError(f"{name[:20]}... is too long a name ({length} bytes): choose one of at most {most}")
    around = next(folder for folder in output.parents if os.path.lexists(folder))
    if not around.is_dir():
        raise GrouperError(f"{output} cannot be written: {around} is not a folder; choose another output")
    own = output.is_dir() and os.access(output, os.W_OK)
    if not own and not os.access(around, os.W_OK):
        raise GrouperError(f"{output} cannot be written: you may not write in {around}; choose another output")
