"""How long work tells how far it is: one protocol for searching, measuring, refining and writing."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # steps done, of so many, what it is at


def untold(done: int, total: int, note: str) -> None:
    """Tell nobody: the default wherever a function takes a Progress."""
