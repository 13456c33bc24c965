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


_host: list[subprocess.Popen] = []


def grouper(*arguments, cwd=None) -> Done:
    """What the command `grouper ARGUMENTS` said and how it ended."""
    if not _host:
        host = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        atexit.register(host.kill)
        _host.append(host)
    with tempfile.TemporaryDirectory() as folder:
        said = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        asked = {"arguments": [*map(str, arguments)], "cwd": str(cwd or Path.cwd()), "said": said}
        _host[0].stdin.write(json.dumps(asked) + "\n")
        _host[0].stdin.flush()
        code = int(_host[0].stdout.readline())
        return Done(code, *(Path(name).read_text() for name in said))


def serve() -> None:
    """In the process that has torch loaded: a child for each line of standard input; its exit code goes out."""
    sys.path.insert(0, str(ROOT))
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(arguments: list[str], cwd: str, said: list[str]) -> None:
    """In the child: the command, with files where it prints; does not return."""
    for number, name in enumerate(said, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
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
    serve()
