"""Check that commands killed or stopped at any moment give the same files when they are run again.

    python bench/kills.py                     # 200 kills, 20 stops
    python bench/kills.py --kills 5 --stops 2

Commands: search, evaluate, export with refinement, and uptrain, on a model of two layers. After each SIGKILL at a
random moment, everything is run again. The files are compared with those of an undisturbed run, except for paths and
times. After each SIGTERM the command has two seconds to end with exit code 143.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import faults
from damage import TEXT, Commands, all_commands
from measured import report

PATIENCE = 2.5  # seconds from SIGTERM to the end: two, and a margin for a busy machine


def commands(work: Path) -> Commands:
    _, search, evaluate, export = all_commands(work)
    text = str(work.parent / TEXT)
    refine = ["--refine", "--refine-tokens", "512", "--window", "64", "--text", text]
    heal = ["uptrain", "out", "-o", "healed", "--base", "model", "--text", text, "--window", "64", "--tokens", "2048"]
    heal += ["--step-tokens", "256", "--seed", "1"]
    todo = [] if (work / "out").exists() else [[*export, *refine]]
    search = [*search, "--keep-calibration", str(work / "kept")]
    return [search, evaluate, *todo, *([] if (work / "healed").exists() else [heal])]


def files(work: Path) -> dict[str, bytes]:
    """Content of all files written, without paths and times."""
    found = {}
    for path in sorted(
        p for folder in ("run", "kept", "out", "healed") for p in (work / folder).rglob("*") if p.is_file()
    ):
        content = path.read_bytes().replace(str(work).encode(), b"WORK")
        if path.name == "run.json":
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "timings"}).encode()
        found[str(path.relative_to(work))] = content
    return found


def started(work: Path) -> int:
    child = os.fork()
    if child == 0:
        faults.in_child(work, commands(work), work / "log")
    return child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    faults.imported()
    found = {"kills": 0, "same files": 0, "stops": 0, "stopped in time": 0, "left behind": 0}
    with tempfile.TemporaryDirectory() as place:
        good = faults.small_model(Path(place) / "good")

        def fresh(name: str) -> Path:
            shutil.copytree(good, Path(place) / name / "model")
            return Path(place) / name

        began = time.monotonic()
        undisturbed = fresh("undisturbed")
        first = faults.attempt(undisturbed, commands(undisturbed))
        if first.kind != "clean":
            raise SystemExit(first.said)
        whole, expected = time.monotonic() - began, files(undisturbed)
        for number in range(args.kills + args.stops):
            work, stop = fresh(f"killed-{number}"), number >= args.kills
            child = started(work)
            status = faults.waited(child, rng.uniform(0, whole))
            if status is None:
                os.kill(child, signal.SIGTERM if stop else signal.SIGKILL)
                asked = time.monotonic()
                status = faults.waited(child, 60)
                took = time.monotonic() - asked
                if stop:
                    found["stops"] += 1
                    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else status
                    found["stopped in time"] += took <= PATIENCE and code in (0, 143)
                    if took > PATIENCE or code not in (0, 143):
                        print(f"stop {number}: exit {code} after {took:.1f} s", file=sys.stderr)
            (work / "log").unlink(missing_ok=True)
            again = faults.attempt(work, commands(work))
            same = again.kind == "clean" and files(work) == expected
            left = [p.name for p in (*work.glob("*.refine"), *work.glob("*.uptrain"))]
            found["left behind"] += bool(left)
            if not stop:
                found["kills"] += 1
                found["same files"] += same
            if not same or left:
                mine = files(work)
                other = [n for n in sorted({*mine, *expected}) if mine.get(n) != expected.get(n)]
                print(f"{number}: {again.kind}, {left or other}: {again.said}", file=sys.stderr, flush=True)
            shutil.rmtree(work)
    report("kills", [found])
    if found["kills"] != found["same files"] or found["stops"] != found["stopped in time"] or found["left behind"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
