"""The best learning rate for each number of tokens: nats per token over the original after refinement, on held-out
calibration text.

    python bench/refine_rates.py --kv-heads 4 --refine-tokens 32768,393216 --rates 0.01,0.02,0.04
    python bench/refine_rates.py --model FOLDER --calibration A.txt --kv-heads 1 --scopes attention,block
    python bench/refine_rates.py --refine-tokens 393216 --rates 0.02,0.03 --larger 1,2,4     # fewer, larger steps

Neighbouring heads share, merged spectrally. The evaluation text is not used, because the defaults chosen here are later
measured on it.
"""

import argparse
import time
from dataclasses import replace
from itertools import product

import numpy as np
import torch

from grouper import Checkpoint, HeadLayout
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.merging import MERGES
from grouper.refinement.options import RefineOptions
from grouper.refinement.refine import refine_layers
from grouper.running.in_memory import InMemoryModel

HELD_OUT = 32  # windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--refine-tokens", default="32768,393216")
    parser.add_argument("--rates", default="0.01,0.02,0.04")
    parser.add_argument("--scopes", default="block")
    parser.add_argument("--larger", default="1", help="times the tokens of a step, and as many fewer steps")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    counts = [int(t) for t in args.refine_tokens.split(",")]
    regrouper = Regrouper(
        Checkpoint.open(args.model), Calibration(TextSource(args.calibration), window=args.window), args.device
    )
    model: InMemoryModel = regrouper.model
    everything = regrouper.windows(max(counts) + HELD_OUT * args.window)
    held_out = torch.zeros(len(everything), dtype=torch.bool)
    held_out[torch.linspace(0, len(everything) - 1, HELD_OUT).long()] = True
    unseen, seen = everything[held_out], everything[~held_out]
    original = nll(model.model, unseen)
    a = model.architecture
    neighbours = np.sort(np.arange(a.kv_heads) % args.kv_heads)
    layout = HeadLayout.from_labels([neighbours] * a.layers, a.query_heads, a.head_dim)
    start = regrouper.merged(layout, MERGES["spectral"].before_refinement())
    kept = [start(layer) for layer in range(model.architecture.layers)]
    of = f"{args.model}, KV {args.kv_heads}/{a.kv_heads}"
    print(f"{of}: original {original:.4f} on {unseen.numel():,} tokens", flush=True)
    print("| tokens | scope | lr | step, times | nats over the original | seconds |\n|" + " --- |" * 6, flush=True)
    for tokens in counts:
        part = seen[torch.linspace(0, len(seen) - 1, min(len(seen), tokens // args.window)).long()]
        for scope in args.scopes.split(","):
            for rate, times in product(map(float, args.rates.split(",")), map(int, args.larger.split(","))):
                began = time.perf_counter()
                plan = RefineOptions(scope, lr=rate).plan(args.device)
                steps = round(plan.steps_for(part.numel()) / times)
                options = replace(plan, batch_tokens=times * plan.batch_tokens, steps=steps)
                layers = refine_layers(model, layout, kept.__getitem__, part, options, device=args.device)
                seconds = time.perf_counter() - began
                with model.installed(layout, layers) as regrouped:
                    value = nll(regrouped, unseen) - original
                row = (f"{part.numel():,}", scope, f"{rate:g}", times, f"{value:+.4f}", f"{seconds:.0f}")
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
