"""Errors that shared heads leave of K and V, the least that the same bytes allow, and what refinement reaches; and slow
planes as one block without RoPE.

    python bench/bounds.py        # the bundled model
    python bench/bounds.py --model FOLDER --calibration A.txt --evaluation B.txt --kv-heads 2,1
    python bench/bounds.py --band 0.3 ...    # planes that turn by less than 0.3 radians within a window, as one block

Neighbouring heads, equal groups. Errors are relative to the energies of K and V, as in docs/bounds.md; "refined" is
measured in the same way on the refined weights. The output's error is that of a layer's output on text.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
from measured import report

from fitness.calibrated import calibrated_errors
from fitness.joint import LayerBounds
from grouper import Calibration, Checkpoint, HeadLayout, RefineOptions, TextSource
from grouper.calibration.text import load_tokenizer, windows
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.merging import MERGES
from grouper.running.in_memory import InMemoryModel


def slow_planes(checkpoint: Checkpoint, window: int, radians: float) -> int:
    """Number of planes that turn by less than `radians` within the window."""
    config = checkpoint.config
    theta = (config.get("rope_parameters") or config)["rope_theta"]
    d = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    speeds = theta ** (-np.arange(0, d, 2) / d)
    return int((speeds * window < radians).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--kv-heads", default="8,4", help="uniform counts")
    parser.add_argument("--tokens", type=int, default=32_768, help="for the moments")
    parser.add_argument("--refine-tokens", type=int, default=16_384, help="0: bare merges alone")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--limit", type=int, default=48, help="windows of evaluation text")
    parser.add_argument("--band", default="", help="radians, comma-separated")
    parser.add_argument("--layers", action="store_true", help="a row for each layer, too")
    args = parser.parse_args()

    checkpoint = Checkpoint.open(args.model)
    text = windows(
        TextSource(args.evaluation, purpose="evaluation"), load_tokenizer(checkpoint), args.window, args.limit
    )
    regrouper = Regrouper(checkpoint, Calibration(TextSource(args.calibration), args.tokens, args.window))
    model, a = InMemoryModel(checkpoint), regrouper.architecture
    original = nll(model.model, text)
    merges = {"spectral": MERGES["spectral"]}
    for radians in filter(None, args.band.split(",")):
        slow = slow_planes(checkpoint, args.window, float(radians))
        merges[f"slow={slow} of {len(a.planes)}"] = replace(MERGES["spectral"], slow=slow)
    bounds = [LayerBounds(a.read(checkpoint, i), regrouper.moments_of(i)) for i in range(a.layers)]
    refinement = RefineOptions(tokens=args.refine_tokens, steps=args.steps)
    summary = []
    for count in map(int, args.kv_heads.split(",")):
        labels = [head * count // a.kv_heads for head in range(a.kv_heads)]
        layout = HeadLayout.from_labels([labels] * a.layers, a.query_heads, a.head_dim)
        for name, merge in merges.items():
            began = time.time()
            bare = regrouper.merged(layout, merge)
            rows, over = [], {}
            with model.installed(layout, bare) as regrouped:
                over["nats over, merged"] = nll(regrouped, text) - original
            refined = regrouper.refined(layout, merge, refinement) if args.refine_tokens else None
            if refined:
                with model.installed(layout, refined) as regrouped:
                    over["nats over, refined"] = nll(regrouped, text) - original
            for layer, one in enumerate(layout.layers):
                before, inputs = a.read(checkpoint, layer), regrouper.moments_of(layer)
                start = calibrated_errors(before, merge.before_refinement().merge(before, one, inputs), one, inputs)
                low = bounds[layer].of(one)
                row = {"K merged": start[0], "K group": low.k_group, "K layer": low.k_layer}
                row |= {"V merged": start[1], "V layer": low.v_layer}
                if refined:
                    k, v = calibrated_errors(before, refined(layer).attention, one, inputs)
                    row |= {"K refined": k, "V refined": v}
                    row |= dict(zip(("output merged", "output refined"), refined.errors(layer)))
                rows.append(row)
            if args.layers:
                report(f"bounds-{count}", [{"layer": layer, **row} for layer, row in enumerate(rows)])
            means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
            summary.append({"KV heads": f"{count} of {a.kv_heads}", "merge": name, **means, **over})
            print(f"  {count} {name}: {over} ({time.time() - began:.0f} s)", flush=True)
    print(f"{args.model}: {original:.4f} nats per token on {text.numel():,} tokens")
    report("bounds", summary)


if __name__ == "__main__":
    main()
