"""Commands as people type them, and programs, each in a process of its own, forked from one that has torch loaded.

What a command prints, its exit code and the folder that it works in are those of `python -m cli`.
"""

import atexit
import glob
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


_hosts: dict[str, subprocess.Popen] = {}


def grouper(*arguments, cwd=None, environment: dict[str, str] | None = None, killed_at: Path | None = None) -> Done:
    """What the command `grouper ARGUMENTS` said and how it ended. environment: all variables, where they are not this
    process's; Hugging Face's libraries, which look at them once, are then imported by the command. killed_at: pattern
    of a path; the command is killed when there is one."""
    return _done(None, arguments, cwd, environment, killed_at)


def python(program: Path, *arguments, environment: dict[str, str] | None = None) -> Done:
    """The same of `python PROGRAM ARGUMENTS`."""
    return _done(str(program), arguments, None, environment)


def _done(
    program: str | None, arguments: tuple, cwd: Path | None, environment: dict[str, str] | None,
    killed_at: Path | None = None,
) -> Done:  # fmt: skip
    host = _host("bare" if environment else "ready")
    with tempfile.TemporaryDirectory() as folder:
        said = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        asked = {"program": program, "arguments": [*map(str, arguments)], "cwd": str(cwd or Path.cwd()), "said": said}
        asked |= {"environment": environment, "killed_at": killed_at and str(killed_at)}
        host.stdin.write(json.dumps(asked) + "\n")
        host.stdin.flush()
        code = int(host.stdout.readline())
        return Done(code, *(Path(name).read_text() for name in said))


def _host(kind: str) -> subprocess.Popen:
    if kind not in _hosts:
        _hosts[kind] = subprocess.Popen(
            [sys.executable, __file__, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        atexit.register(_hosts[kind].kill)
    return _hosts[kind]


def serve(kind: str) -> None:
    """In the process that has torch loaded: a child for each line of standard input; its exit code goes out. kind:
    "ready", or "bare" of Hugging Face's libraries."""
    sys.path.insert(0, str(ROOT))
    import grouper  # noqa: F401  it sets variables that torch looks at

    for name in ("torch", "pandas", "matplotlib.pyplot", "scipy.optimize", "scipy.stats", "typer", "rich.table"):
        import_module(name)
    if kind == "ready":
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel  # noqa: F401

        for name in (
            "search.one_call",
            "search.evaluation.models",
            "grouper.uptraining.uptrain",
            "grouper.export.hf.write",
        ):
            import_module(name)
    assert kind == "ready" or "huggingface_hub" not in sys.modules
    assert "search.commands.console" not in sys.modules, "it looks at where it prints when it is imported"

    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(
    program: str | None, arguments: list[str], cwd: str, said: list[str], environment: dict[str, str] | None,
    killed_at: str | None,
) -> None:  # fmt: skip
    """In the child: the command or program, with files where it prints; does not return."""
    for number, name in enumerate(said, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    if killed_at:
        threading.Thread(target=kill_at, args=(killed_at,), daemon=True).start()
    sys.argv = [program or "grouper", *arguments]
    code = 1
    try:
        if program:
            sys.path.insert(0, str(Path(program).parent))
            runpy.run_path(program, run_name="__main__")
        else:
            import cli

            cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
        print(end.code if isinstance(end.code, str) else "", end="", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_at(pattern: str) -> None:
    """This process, as soon as there is such a path."""
    while not glob.glob(pattern):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
