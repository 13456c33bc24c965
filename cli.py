"""The `grouper` command: parses the command line, calls and prints. Data on stdout, messages and progress on stderr."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:  # `python -m cli` looks in the current folder first
    HOME = os.path.dirname(os.path.realpath(__file__))
    sys.path[:1] = [place for place in sys.path[:1] if os.path.realpath(place) == HOME]

import logging
import traceback

from grouper.errors import GrouperError, is_disk_full, is_memory_short
from grouper.names import printable, shortened
from grouper.outputs import as_asked_for
from grouper.ranks import FirstFailed
from search.commands.application import app
from search.commands.console import ERR
from search.commands.notes import print_notes
from search.commands.options import as_flags
from search.stopping import Stopped, stop_on_signals

RESUMED = ("search", "regroup", "evaluate", "export", "uptrain")


def main() -> None:
    """Run the command. Exit codes: 0, 1 (failed, with one line that says why), 2 (usage), 130 or 143 (stopped by a
    signal)."""
    for name, value in {
        "PYTHONSAFEPATH": "1",  # no child process imports from the current folder
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # progress bars of libraries would hide ours
    }.items():
        os.environ.setdefault(name, value)
    debug = "--debug" in sys.argv
    if {"--quiet", "-q"} & set(sys.argv):
        ERR.quiet, os.environ["GROUPER_QUIET"] = True, "1"  # for consoles created later
    if "--verbose" in sys.argv:
        logging.basicConfig(level=logging.INFO)
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
    sys.argv = [a for a in sys.argv if a not in ("--debug", "--quiet", "-q", "--verbose")]
    if os.environ.get("RANK", "0") != "0":  # only the first of several ranks prints; the others print failures
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    print_notes(ERR)
    heard = stop_on_signals(lambda: _say(_stopped()))
    try:
        if strange := [a for a in sys.argv if a != a.encode(errors="replace").decode()]:
            raise GrouperError(f"{strange[0]!r} is not UTF-8: rename it")
        if strange := [
            a for a in sys.argv if a.startswith("-") and a.partition("=")[0] != printable(a.partition("=")[0])
        ]:
            raise GrouperError(f"no option {strange[0].partition('=')[0]!r}: see --help")
        app()
    except Stopped as stop:
        heard.set()
        _fail(_stopped(), stop.code)
    except KeyboardInterrupt:
        _fail(_stopped(), 130)
    except FirstFailed:
        sys.exit(1)
    except Exception as error:
        if debug:
            _end(traceback.format_exc())
        _fail(_said(error))


def _said(error: Exception) -> str:
    """One line that names the failure and its remedy."""
    if is_disk_full(error):
        return f"{error}: the disk is full, or a limit is reached; make room, and the same command goes on"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fspath(error.filename)!s}: {error.strerror.lower()}"
    if isinstance(error, GrouperError | OSError):
        return as_flags(str(error))
    if type(error).__name__ == "OutOfMemoryError":  # raised by torch, which is not imported here
        return "the GPU's memory is short: give fewer --jobs, or --device cpu"
    if is_memory_short(error):
        return "memory is short: give --memory an amount that is there, or fewer --jobs"
    last = (str(error).strip().splitlines() or ["no message"])[-1]
    return f"internal error: {type(error).__name__}, {last}; run again with --debug for the traceback, please report"


def _stopped() -> str:
    """Message of a command that a signal stopped."""
    resumed = next((word for word in sys.argv[1:] if not word.startswith("-")), None) in RESUMED
    return "stopped; the same command goes on from here" if resumed else "stopped"


def _fail(why: str, code: int = 1) -> None:
    """Print the reason in one line, and exit."""
    _end(_line(why), code)


def _end(told: str, code: int = 1) -> None:
    _print(told)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os._exit(code)  # a regular exit would wait for ranks that wait for this one
    sys.exit(code)


def _say(why: str) -> None:
    """Print the reason in one line."""
    _print(_line(why))


def _line(why: str) -> str:
    rank = os.environ.get("RANK", "0")
    who = "grouper" if rank == "0" else f"grouper, rank {rank}"
    return f"{who}: {shortened(printable(as_asked_for(' '.join(why.split()))))}"


def _print(told: str) -> None:
    first = os.environ.get("RANK", "0") == "0"
    print(printable(told), file=sys.stderr if first else sys.__stderr__, flush=True)


if __name__ == "__main__":
    main()
