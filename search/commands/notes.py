"""Notes of the packages' log on the terminal: one line each on stderr."""

import logging

from rich.console import Console

from grouper.names import printable
from search.commands.options import as_flags


class Notes(logging.Handler):
    """Prints warnings of the log `grouper` to a console."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(f"note: {printable(as_flags(record.getMessage()))}", soft_wrap=True)


def print_notes(console: Console) -> None:
    """Let the log `grouper` speak on this console, and nowhere else."""
    log = logging.getLogger("grouper")
    log.handlers, log.propagate = [Notes(console)], False
