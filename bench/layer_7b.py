"""Time and memory of one Llama-2-7B-shaped layer: moments, tables, search, merge, refinement.

    python bench/layer_7b.py --tokens 32768

The layer is random, which does not change the time: hidden size 4096, 32 heads of 128. A model of 32 layers takes 32
times as long, and reads its weights one more time.
"""

import argparse
import tempfile
import time

import numpy as np
import torch

from fitness import FITNESSES
from grouper import Checkpoint, HeadLayout
from grouper.attention import MergedLayer
from grouper.calibration.moments import collect_moments
from grouper.merging.spectral import Spectral
from grouper.refinement.options import RefineOptions
from grouper.refinement.refine import refine_layers
from grouper.running.in_memory import InMemoryModel
from search.methods.qcqa import any_sizes, equal_sizes
from search.optimise.partition import best_per_count
from search.options import GeneticOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scope", default="block")
    args = parser.parse_args()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=1,
        num_attention_heads=32,
        vocab_size=1000,
        head_dim=128,
    )
    torch.manual_seed(0)
    rows = []

    def timed(name: str, call):
        if args.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        result = call()
        if args.device == "cuda":
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else float("nan")
        rows.append((name, time.perf_counter() - began, peak))
        print(f"| {name} | {rows[-1][1]:.2f} | {peak:.1f} |", flush=True)
        return result

    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        checkpoint = Checkpoint.open(folder)
        model = InMemoryModel(checkpoint, args.device)
        tokens = torch.randint(0, 1000, (args.tokens // 512, 512), generator=torch.Generator().manual_seed(0))
        print("| one layer | seconds | peak GPU GiB |\n| --- | --- | --- |")
        moments = timed(f"moments, {args.tokens:,} tokens", lambda: next(collect_moments(model, tokens)))
        attention = model.architecture.read(checkpoint, 0)
        fitness = timed("tables", lambda: FITNESSES["spectral"].tables(attention, moments, device=args.device))
        equal = timed("search, equal sizes", lambda: equal_sizes(fitness, np.random.default_rng(0), GeneticOptions()))
        timed("search, any sizes", lambda: any_sizes(fitness, np.random.default_rng(0), GeneticOptions()))
        layout = HeadLayout.from_labels([best_per_count(equal)[8].labels], 32, 128)
        merge = Spectral(rescale=False)
        merged = timed(
            "spectral merge, 8 KV heads",
            lambda: merge.merge(attention, layout.layers[0], moments, args.device),
        )
        options = RefineOptions(args.scope).plan(args.device)
        steps = options.steps_for(tokens.numel())
        done = timed(
            f"refinement, {args.scope}, {steps} steps of 4,096 tokens",
            lambda: refine_layers(model, layout, lambda _: MergedLayer(merged), tokens, options),
        )
        print(
            f"refinement error {done(0).before:.4f} -> {done(0).after:.4f}; {len(fitness._known)} groups scored exactly"
        )


if __name__ == "__main__":
    main()
