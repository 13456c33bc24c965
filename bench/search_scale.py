"""Time and memory of searches on models of common serving sizes.

    python bench/search_scale.py                        # 7B, by weights and by default: 15 minutes on 2 cores
    python bench/search_scale.py --shape 7b --fitness spectral --text demo --device cuda
    python bench/search_scale.py --fitness spectral --text demo --device auto --ranks 2      # a GPU each
    python bench/search_scale.py --layers 4             # of 32, quicker: the rest is said as if all layers were alike

Random weights of a real shape (bench/shapes.py). Prints the seconds of the whole command and its peak of anonymous
memory over all its processes.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from measured import report, run
from shapes import SHAPES, Shape, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--fitness", default="weight,spectral")
    parser.add_argument("--text")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", default="auto")
    parser.add_argument("--ranks", type=int, default=1, help="processes that torchrun starts")
    args = parser.parse_args()
    whole = SHAPES[args.shape]
    shape = Shape(args.layers or whole.layers, whole.hidden, whole.heads, whole.kv_heads, whole.inner, whole.vocabulary)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make(shape, Path(folder) / "model")
        for fitness in args.fitness.split(","):
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", args.ranks]
            started = [sys.executable, *(launcher if args.ranks > 1 else []), "-m", "cli"]
            command = [*started, "search", model, "-o", Path(folder) / fitness, "--fitness", fitness]
            text = ["--text", args.text] if args.text and fitness != "weight" else []
            done = run(*command, *text, "--device", args.device, "--jobs", args.jobs)
            if done.code:
                raise SystemExit(done.output)
            rows.append({
                "model": args.shape, "layers": shape.layers, "fitness": fitness, "text": bool(text),
                "device": args.device, "ranks": args.ranks, "seconds": round(done.seconds, 1),
                "all layers, s": round(done.seconds * whole.layers / shape.layers, 1),
                "peak GB": round(done.peak / 1e9, 2),
                **json.loads((Path(folder) / fitness / "run.json").read_text())["timings"],
            })  # fmt: skip
    report("search_scale", rows)


if __name__ == "__main__":
    main()
