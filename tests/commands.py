"""Commands as people type them, each in a process of its own, forked from one that has torch loaded.

What a command prints, its exit code and the folder that it works in are those of `python -m cli`.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


_hosts: dict[str, subprocess.Popen] = {}


def grouper(*arguments, cwd=None, environment: dict[str, str] | None = None) -> Done:
    """What the command `grouper ARGUMENTS` said and how it ended. environment: all variables, where they are not this
    process's; Hugging Face's libraries, which read them when they are imported, are then imported by the command."""
    host = _host("bare" if environment else "ready")
    with tempfile.TemporaryDirectory() as folder:
        said = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        place = str(cwd or Path.cwd())
        asked = {"arguments": [*map(str, arguments)], "cwd": place, "said": said, "environment": environment}
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
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch  # noqa: F401

    if kind == "ready":
        from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: F401
    else:
        assert "huggingface_hub" not in sys.modules

    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(arguments: list[str], cwd: str, said: list[str], environment: dict[str, str] | None) -> None:
    """In the child: the command, with files where it prints; does not return."""
    for number, name in enumerate(said, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    sys.argv = ["grouper", *arguments]
    code = 1
    try:
        import cli

        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
