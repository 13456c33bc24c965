"""Warnings of the `grouper` logger in the terminal: one line each on stderr."""

import logging

from rich.console import Console

from grouper.names import printable
from search.commands.options import as_flags


class Notes(logging.Handler):
    """Logging handler that prints warnings of the logger `grouper` on a console."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(f"note: {printable(as_flags(record.getMessage()))}", soft_wrap=True)


def print_notes(console: Console) -> None:
    """Send the logger `grouper` to this console only."""
    log = logging.getLogger("grouper")
    log.handlers, log.propagate = [Notes(console)], False
