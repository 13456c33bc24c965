"""Speed and memory of refining a layer, and accuracy of the time estimate.

    python bench/refinement.py                            # a 30M model, all tokens of the text in the box
    python bench/refinement.py --shape 7b --layers 2 --tokens 393216
    torchrun --nproc-per-node 2 bench/refinement.py --shape 7b --layers 2 --tokens 393216             # a GPU each
    python bench/refinement.py --shape 7b --layers 2 --tokens 2048 --memory 1GB --scope attention   # streamed from disk

Weights are random, of a real shape. The estimate is the one that `grouper export` prints before it starts.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import psutil
import torch
from measured import anonymous, report
from shapes import SHAPES, Shape, make

from grouper import Checkpoint, HeadLayout
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.compress import Regrouper
from grouper.merging import MEAN
from grouper.model.memory import parsed_bytes
from grouper.ranks import own_gpu, started_ranks
from grouper.refinement.options import RefineOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="30m", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--scope")
    parser.add_argument("--memory")
    parser.add_argument("--device")
    args, ranks = parser.parse_args(), started_ranks()
    args.device = args.device or (own_gpu() if torch.cuda.is_available() else "cpu")
    whole = SHAPES[args.shape]
    shape = Shape(args.layers or whole.layers, whole.hidden, whole.heads, whole.kv_heads, whole.inner, whole.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.open(make(shape, Path(folder) / "model", whole=True))
        calibration = Calibration(TextSource("demo"), window=args.window)
        memory = None if args.memory is None else parsed_bytes(args.memory, "--memory")
        regrouper = Regrouper(checkpoint, calibration, args.device, memory, ranks)
        shared = ranks.first_does(lambda: Path(folder))
        options = RefineOptions(args.scope, tokens=args.tokens).plan(args.device)
        half = [[i // 2 for i in range(shape.kv_heads)]] * shape.layers
        layout = HeadLayout.from_labels(half, shape.heads, shape.head_dim)
        said = regrouper.estimate(layout, MEAN, options)
        peak = [0]

        def progress(done: int, total: int, note: str) -> None:
            peak[0] = max(peak[0], anonymous(psutil.Process()))

        began = time.perf_counter()
        merged = regrouper.refined(layout, MEAN, options, shared / "kept", progress, ranks)
        took = time.perf_counter() - began
        tokens = regrouper.windows(options.tokens).numel()
        gpu = torch.cuda.max_memory_allocated() / 1e9 if "cuda" in args.device else None
        if not ranks.first:
            return
        report("refinement", [{
            "model": args.shape, "kind": type(regrouper.model).__name__, "layers": shape.layers, "scope": options.scope,
            "tokens": tokens, "steps": options.steps_for(tokens), "device": args.device, "ranks": ranks.size,
            "said s": round(said, 1),
            "took s": round(took, 1), "all layers, s": round(took * whole.layers / shape.layers, 1),
            "peak GB": round(peak[0] / 1e9, 2), "GPU GB": gpu and round(gpu, 2),
            "errors": json.dumps([[round(e, 4) for e in merged.errors(i)] for i in range(min(2, shape.layers))]),
        }])  # fmt: skip


if __name__ == "__main__":
    main()
