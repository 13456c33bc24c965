"""Nats per token over the original, merge by merge and layout by layout, at the same KV bytes.

    python bench/quality.py                                            # the model in the box, on the GPU if there is one
    python bench/quality.py --model FOLDER --calibration A.txt --evaluation B.txt --kv-heads 2,1

Calibration and evaluation text differ. "weight-sharing error" rows are the exact optimum of QCQA's own error with its mean merge, at a uniform
count and with budgets per layer from the exact knapsack; the last lines compare spectral and refined with the better of the two.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from fitness.perplexity import nll
from grouper import Checkpoint
from grouper.in_memory import InMemoryModel
from grouper.regroup import Calibration, Regrouper
from grouper.text import TextSource, load_tokenizer, windows
from search import ParetoFront, RunFolder, SearchOptions, search


def best(front: ParetoFront, kv_ratio: float, which: str):
    """The row of lowest error at this KV ratio: "neighbour", "equal", "any" (one count), or "budgets" (any counts)."""
    rows = front.table[(front.table["kv_ratio"] - kv_ratio).abs() < 1e-6]
    baseline = rows["method"] == "neighbour"
    chosen = {
        "neighbour": baseline,
        "equal": ~baseline & (rows["method"] != "random") & (rows["deploy"] == "stock"),
        "any": ~baseline & (rows["method"] != "random") & rows["deploy"].isin(["stock", "padded"]),
        "budgets": ~baseline & (rows["method"] != "random"),
    }[which]
    rows = rows[chosen]
    return None if rows.empty else rows.sort_values(["error", "layout"]).iloc[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--kv-heads", default="8,4,2", help="uniform counts")
    parser.add_argument("--tokens", type=int, default=131_072, help="for the moments")
    parser.add_argument("--refine-tokens", type=int)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--limit", type=int, help="windows of evaluation text")
    parser.add_argument("--refine", default="equal,budgets", help="which layouts to refine")
    parser.add_argument("--scope", help="attention or block")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    checkpoint = Checkpoint.open(args.model)
    model = InMemoryModel(checkpoint, args.device)
    evaluation = windows(TextSource(args.evaluation, purpose="evaluation"), load_tokenizer(checkpoint), args.window, args.limit)
    calibration = Calibration(TextSource(args.calibration), args.tokens, args.refine_tokens, args.window)
    calibrated, uncalibrated = Regrouper(checkpoint, calibration, args.device, model), Regrouper(checkpoint, None, args.device, model)
    original = nll(model.model, evaluation)
    print(f"{args.model}: {original:.4f} nats per token on {evaluation.numel():,} tokens; calibrated on {args.tokens:,}", flush=True)

    found: dict[str, list[float | None]] = {}
    counts = [int(k) for k in args.kv_heads.split(",")]
    heads = model.architecture.kv_heads

    def measure(name: str, column: int, layout, merged) -> None:
        began = time.time()
        value = nll(calibrated.install(layout, merged()), evaluation) - original
        model.restore()
        found.setdefault(name, [None] * len(counts))[column] = value
        print(f"  KV {counts[column]}/{heads} {name}: {value:+.4f} ({time.time() - began:.0f} s)", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        text = {"text": args.calibration, "tokens": args.tokens, "window": args.window}
        exact = ("exact",) if heads <= 16 else ("qcqa-ac", "qcqa-ec")
        runs = {"weight": SearchOptions(method=exact, fitness="weight"), "spectral": SearchOptions(**text)}
        fronts = {n: search(args.model, Path(temporary) / n, o, device=args.device if n == "spectral" else "cpu") for n, o in runs.items()}

        def layout(run: str, row):
            return RunFolder(Path(temporary) / run).layout(int(row["layout"]))

        for column, count in enumerate(counts):
            ratio = count / heads
            for run, which, merge, regrouper, name in (
                ("weight", "neighbour", "mean", uncalibrated, "neighbours, mean"),
                ("weight", "equal", "mean", uncalibrated, "weight-sharing error, equal sizes, mean"),
                ("weight", "any", "mean", uncalibrated, "weight-sharing error, any sizes, mean"),
                ("weight", "budgets", "mean", uncalibrated, "weight-sharing error, budgets, mean"),
                ("weight", "neighbour", "procrustes", calibrated, "neighbours, Procrustes"),
                ("weight", "neighbour", "spectral", uncalibrated, "neighbours, spectral, no text"),
                ("weight", "neighbour", "spectral", calibrated, "neighbours, spectral"),
                ("spectral", "equal", "spectral", calibrated, "spectral, equal sizes"),
                ("spectral", "any", "spectral", calibrated, "spectral, any sizes"),
                ("spectral", "budgets", "spectral", calibrated, "spectral, budgets"),
            ):
                row = best(fronts[run], ratio, which)
                if row is not None:
                    heads_of = layout(run, row)
                    measure(name, column, heads_of, lambda r=regrouper, h=heads_of, m=merge: r.merged(h, m))
            for run, which, merge, name in (
                ("weight", "neighbour", "mean", "neighbours, mean, refined"),
                ("spectral", "equal", "spectral", "spectral, equal sizes, refined"),
                ("spectral", "any", "spectral", "spectral, any sizes, refined"),
                ("spectral", "budgets", "spectral", "spectral, budgets, refined"),
            ):
                row = best(fronts[run], ratio, which)
                if row is not None and which in args.refine.split(","):
                    heads_of = layout(run, row)
                    options = calibrated.refine_options(args.scope)
                    measure(name, column, heads_of, lambda h=heads_of, m=merge, o=options: calibrated.refined(h, m, o))

    print("\n| | " + " | ".join(f"KV {k / heads:.3g}" for k in counts) + " |\n|" + " --- |" * (len(counts) + 1))
    for name, values in found.items():
        print(f"| {name} | " + " | ".join("" if v is None else f"{v:+.3f}" for v in values) + " |")
    summary(found, counts, heads)
    if args.json:
        args.json.write_text(json.dumps({"original": original, "kv_heads": counts, "over_original": found}, indent=2) + "\n")


def summary(found: dict, counts: list[int], heads: int) -> None:
    """Spectral and refined against the better weight-sharing-error layout."""

    def least(prefix: str, column: int, refined: bool) -> float | None:
        names = [n for n in found if n.startswith(prefix) and n.endswith(", refined") == refined]
        return min((found[n][column] for n in names if found[n][column] is not None), default=None)

    for column, count in enumerate(counts):
        weight, plain, refined = least("weight", column, False), least("spectral,", column, False), least("spectral,", column, True)
        line = f"KV {count}/{heads}: best weight-sharing error {weight:+.3f}, spectral {plain:+.3f} (1/{weight / plain:.1f})"
        print(line + ("" if refined is None else f", refined {refined:+.3f} (1/{weight / refined:.1f})"))


if __name__ == "__main__":
    main()
