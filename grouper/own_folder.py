"""Folder for what Grouper keeps on this machine between commands."""

import os
from pathlib import Path


def home() -> Path:
    """GROUPER_HOME, else XDG_CACHE_HOME/grouper, else ~/.cache/grouper. Raises RuntimeError if the home directory is
    unknown."""
    given = os.environ.get("GROUPER_HOME")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "grouper").expanduser().absolute()
