"""One GPU and two of one machine: seconds of each command, loading of weights and the start of Python apart.

    python bench/gpus.py                                     # all rows, each on one GPU and on two
    python bench/gpus.py --rows search:13b:8 evaluate:1b     # COMMAND:SHAPE[:LAYERS]
    python bench/gpus.py --rows uptrain:tiny --device cpu    # a minute, with two processes of gloo

Weights are random, of a real shape. `search` includes the calibration, `uptrain-sharded` holds a part of the model on
each card (FSDP2), and uptrain's seconds are those of a million tokens. Refinement has a bench of its own,
bench/refinement.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from measured import report
from shapes import SHAPES, Shape, make

if TYPE_CHECKING:
    from grouper import Machine
    from grouper.progress import Progress

ROWS = ("search:13b:8", "search:70b:2", "evaluate:1b", "uptrain:1b", "uptrain-sharded:1b", "uptrain-sharded:7b")
SHARDED = "uptrain-sharded"
SAID = "seconds: "
CARD = 80 * 10**9  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--processes", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=262_144, help="tokens of training")
    parser.add_argument("--windows", type=int, default=256, help="windows of evaluation")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)  # folder of the model: this is one rank
    args = parser.parse_args()
    if args.within:
        return one_rank(args)
    rows: list[dict] = []
    for name, wanted in groupby(args.rows, key=lambda row: row.partition(":")[2]):
        with tempfile.TemporaryDirectory() as folder:
            commands = [row.partition(":")[0] for row in wanted]
            model = make(shape_of(*name.split(":")), Path(folder) / "model")  # zeros take as long as numbers
            if commands != ["search"]:
                exported(model)
            for command in commands:
                for count in args.processes if command != SHARDED else [n for n in args.processes if n > 1]:
                    of = {"command": command, "model": name, "processes": count}
                    rows.append({**of, **measured(command, count, model, args)})
                    print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        whole = row["command"].removesuffix("-sharded")
        alone = [r["seconds"] for r in rows if (r["command"], r["model"], r["processes"]) == (whole, row["model"], 1)]
        row["times as fast as one"] = round(alone[0] / row["seconds"], 2) if alone and row["seconds"] else None
    report("gpus", rows)


def shape_of(name: str, layers: str | None = None) -> Shape:
    s = SHAPES[name]
    return Shape(int(layers or s.layers), s.hidden, s.heads, s.kv_heads, s.inner, s.vocabulary)


def exported(model: Path) -> None:
    """Export half the KV heads, merged by the mean, beside the model."""
    from grouper import Architecture, Checkpoint, HeadLayout, export

    checkpoint = Checkpoint.open(model)
    a = Architecture.of(checkpoint.config)
    half = [[i // 2 for i in range(a.kv_heads)]] * a.layers
    export(checkpoint, HeadLayout.from_labels(half, a.query_heads, a.head_dim), model.parent / "half", merge="mean")


def measured(command: str, count: int, model: Path, args: argparse.Namespace) -> dict:
    """Run a command with `count` processes."""
    start = [sys.executable, "-P"]
    if count > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    words = ["--rows", command, "--device", args.device, "--tokens", args.tokens, "--windows", args.windows]
    sharded = {"ACCELERATE_USE_FSDP": "true"} if command == SHARDED else {}
    environment = {**os.environ, **sharded, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [*start, __file__, *map(str, words), "--within", str(model)], capture_output=True, text=True, env=environment
    )
    said = [line.removeprefix(SAID) for line in done.stdout.splitlines() if line.startswith(SAID)]
    if done.returncode or not said:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        return {"seconds": None, "GPU GB": None}
    return json.loads(said[0])


def one_rank(args: argparse.Namespace) -> None:
    from grouper.machine import Machine
    from grouper.ranks import started_ranks

    command = args.rows[0]
    ranks, model = started_ranks(), args.within  # a model of the shape, and half of its KV heads in `half` beside it
    if torch.cuda.is_available() and command == SHARDED:
        within(CARD)
    seen: list[tuple[float, int]] = []
    machine = Machine(args.device, progress=lambda done, total, note: seen.append((time.perf_counter(), done)))
    again = ranks.first_does(lambda: Path(tempfile.mkdtemp(dir=model.parent)))
    began = time.perf_counter()
    if command == "search":
        from search import SearchOptions, search

        search(model, again / "run", SearchOptions(text="demo"), machine=machine)
        seconds = time.perf_counter() - began
    elif command == "evaluate":
        from grouper import TextSource
        from search.evaluation.models import evaluate_model

        source = TextSource("demo", purpose="evaluation")
        evaluate_model(model.parent / "half", source, limit=args.windows, machine=machine)
        seconds = seen[-1][0] - seen[0][0]  # the first report comes when both models are loaded
    else:
        seconds = training_seconds(model, again / "healed", machine, args.tokens, seen)
    if ranks.first:
        gpu = round(torch.cuda.max_memory_allocated() / 1e9, 1) if torch.cuda.is_available() else None
        print(SAID + json.dumps({"seconds": round(seconds, 2), "GPU GB": gpu}), flush=True)


def within(most: int) -> None:
    """Limit this process to `most` bytes of its GPU's memory."""
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / torch.cuda.get_device_properties(0).total_memory))
    torch.cuda.mem_get_info = lambda device=None: (most - torch.cuda.memory_reserved(), most)


def training_seconds(
    model: Path, output: Path, machine: "Machine", tokens: int, seen: list[tuple[float, int]]
) -> float:
    """Seconds of a million tokens of training, between the first report of progress and the last. Activations are
    recomputed if weights and moments alone would take half of a card."""
    from grouper import Checkpoint, TextSource
    from grouper.uptraining.options import UptrainOptions
    from grouper.uptraining.training import Training
    from grouper.uptraining.uptrain import uptrain_model

    run, steps = Training.run, []

    def ended(training: Training, tell: "Progress") -> None:
        run(training, tell)
        steps.extend((training.plan.steps, training.plan.step_tokens))
        raise Ended

    Training.run = ended
    large = 16 * Checkpoint.open(model).parameters > CARD / 2
    options = UptrainOptions(tokens=tokens, lr=1e-5, validate=1, checkpointing=large)
    with suppress(Ended):
        uptrain_model(model.parent / "half", output, TextSource("demo"), options, base=str(model), machine=machine)
    reports = [(when, done) for when, done in seen if 0 < done <= steps[0]]
    end = max(i for i, (_, done) in enumerate(reports) if done == steps[0])
    (began, first), (ended_at, last) = reports[0], reports[end]
    return (ended_at - began) / ((last - first) * steps[1]) * 1e6


class Ended(Exception):
    """End of a training whose weights are not wanted."""


if __name__ == "__main__":
    main()
