"""Nats per token over the original, method by method and merge by merge, at the same KV bytes.

    python bench/quality.py        # the bundled model, on the GPU if there is one
    python bench/quality.py --model FOLDER --calibration A.txt --evaluation B.txt --kv-heads 2,1

Calibration and evaluation text differ. Rows named "weight-sharing error" are the exact optimum of QCQA's own error with
its mean merge, at a uniform count and with budgets per layer from the exact knapsack. The last lines compare spectral
and refined merges with the best of these rows.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from grouper import Checkpoint
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer, windows
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.machine import Machine
from grouper.merging import MERGES
from grouper.refinement.options import RefineOptions
from grouper.running.in_memory import InMemoryModel
from search import ParetoFront, RunFolder, SearchOptions, search
from search.methods.exact import LIMIT

SLOW = "asymgqa, steps by loss"


@dataclass(frozen=True)
class Row:
    """A row of the table. run: name of the search. methods: whose layouts are used (all but baselines if empty). which:
    "equal" groups, "any" sizes with one count, or "budgets" with any counts. calibrated: whether the merge uses text.
    refined: name under which --refine selects the row."""

    name: str
    run: str
    methods: tuple[str, ...]
    which: str
    merge: str
    calibrated: bool = True
    refined: str = ""


NEIGHBOURS = ("weight", ("neighbour",), "any")
ROWS = [
    Row("neighbours, mean (GQA)", *NEIGHBOURS, "mean"),
    Row("neighbours, first head", *NEIGHBOURS, "first"),
    Row("neighbours, medoid (select)", *NEIGHBOURS, "select"),
    Row("neighbours, weighted by head (WGQA)", *NEIGHBOURS, "weighted"),
    Row("neighbours, weighted by column", *NEIGHBOURS, "weighted-column"),
    Row("neighbours, weighted by row", *NEIGHBOURS, "weighted-row"),
    Row("neighbours, Procrustes", *NEIGHBOURS, "procrustes"),
    Row("neighbours, spectral, no text", *NEIGHBOURS, "spectral", calibrated=False),
    Row("neighbours, spectral", *NEIGHBOURS, "spectral"),
    Row("KDGQA, mean", "activation", ("kdgqa",), "any", "mean"),
    Row("DGQA, moving average, mean", "activation", ("dgqa",), "any", "mean"),
    Row("DGQA, difference, mean", "activation", ("dgqa-diff",), "any", "mean"),
    Row("GQKVA, mean", "activation", ("gqkva",), "any", "mean"),
    Row("AsymGQA, equal sizes, mean", "activation", ("asymgqa-sym",), "equal", "mean"),
    Row("AsymGQA, any sizes, mean", "activation", ("asymgqa",), "any", "mean"),
    Row("AsymGQA, equal sizes, steps by loss, mean", SLOW, ("asymgqa-sym",), "equal", "mean"),
    Row("AsymGQA, any sizes, steps by loss, mean", SLOW, ("asymgqa",), "any", "mean"),
    Row("AsymGQA, Ward, mean", "activation", ("ward",), "any", "mean"),
    Row("weight-sharing error, equal sizes, mean (QCQA-EC)", "weight", ("exact", "qcqa-ec"), "equal", "mean"),
    Row("weight-sharing error, any sizes, mean (QCQA-AC)", "weight", ("exact", "qcqa-ac"), "any", "mean"),
    Row("weight-sharing error, budgets, mean (QCQA)", "weight", ("exact", "qcqa-ac", "qcqa-ec"), "budgets", "mean"),
    Row("activation error, equal sizes, mean", "activation", ("qcqa-ac", "qcqa-ec"), "equal", "mean"),
    Row("activation error, any sizes, mean", "activation", ("qcqa-ac", "qcqa-ec"), "any", "mean"),
    Row("activation error, budgets, mean", "activation", ("qcqa-ac", "qcqa-ec"), "budgets", "mean"),
    Row("activation error, K and V apart, mean", "activation", ("separate",), "budgets", "mean"),
    Row("spectral, equal sizes", "spectral", ("qcqa-ac", "qcqa-ec"), "equal", "spectral"),
    Row("spectral, any sizes", "spectral", ("qcqa-ac", "qcqa-ec"), "any", "spectral"),
    Row("spectral, budgets", "spectral", ("qcqa-ac", "qcqa-ec"), "budgets", "spectral"),
    Row("spectral, K and V apart", "spectral", ("separate",), "budgets", "spectral"),
    Row("neighbours, mean, refined", *NEIGHBOURS, "mean", refined="neighbour"),
    Row("spectral, equal sizes, refined", "spectral", ("qcqa-ac", "qcqa-ec"), "equal", "spectral", refined="equal"),
    Row("spectral, any sizes, refined", "spectral", ("qcqa-ac", "qcqa-ec"), "any", "spectral", refined="any"),
    Row("spectral, budgets, refined", "spectral", ("qcqa-ac", "qcqa-ec"), "budgets", "spectral", refined="budgets"),
    Row("spectral, K and V apart, refined", "spectral", ("separate",), "budgets", "spectral", refined="apart"),
]


def runs(model: InMemoryModel, text: dict, slow: bool) -> dict[str, SearchOptions]:
    """Options of the searches that the table needs."""
    heads = model.architecture.kv_heads
    multi_head = ("gqkva",) if heads == model.architecture.query_heads else ()
    exact = ("exact",) if heads <= LIMIT else ("qcqa-ac", "qcqa-ec")
    every = (
        "qcqa-ac",
        "qcqa-ec",
        "asymgqa",
        "asymgqa-sym",
        "ward",
        "kdgqa",
        "dgqa",
        "dgqa-diff",
        "separate",
        *multi_head,
    )
    return {
        "weight": SearchOptions(exact, "weight"),
        "activation": SearchOptions(every, "activation", **text),
        "spectral": SearchOptions(("qcqa-ac", "qcqa-ec", "separate"), **text),
        **({SLOW: SearchOptions(paper="asymgqa", **text)} if slow else {}),
    }


def best(front: ParetoFront, kv_ratio: float, row: Row) -> pd.Series | None:
    """The layout of lowest error at this KV ratio among those of the row."""
    rows = front.found_by(*row.methods)
    rows = rows[(rows["kv_ratio"] - kv_ratio).abs() < 1e-6]
    deploys = {"equal": ["stock"], "any": ["stock", "padded"], "budgets": ["stock", "padded", "ragged", "none"]}[
        row.which
    ]
    if row.methods not in (("gqkva",), ("separate",)):
        rows = rows[rows["deploy"].isin(deploys)]
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
    parser.add_argument(
        "--refine", default="equal,budgets", help="what to refine: neighbour, equal, any, budgets, apart, or none"
    )
    parser.add_argument("--scope", help="attention or block")
    parser.add_argument("--slow", action="store_true", help="AsymGQA with steps judged by the merged model's loss, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    checkpoint = Checkpoint.open(args.model)
    model = InMemoryModel(checkpoint, args.device)
    evaluation = windows(
        TextSource(args.evaluation, purpose="evaluation"), load_tokenizer(checkpoint), args.window, args.limit
    )
    calibration = Calibration(TextSource(args.calibration), args.tokens, args.window)
    original = nll(model.model, evaluation)
    print(
        f"{args.model}: {original:.4f} nats per token on {evaluation.numel():,} tokens; calibrated on {args.tokens:,}",
        flush=True,
    )
    found: dict[str, list[float | None]] = {}
    counts = [int(k) for k in args.kv_heads.split(",")]
    heads = model.architecture.kv_heads

    with tempfile.TemporaryDirectory() as temporary:
        calibration = replace(calibration, keep=Path(temporary) / "kept")
        calibrated, uncalibrated = (
            Regrouper(checkpoint, calibration, args.device),
            Regrouper(checkpoint, None, args.device),
        )
        text = {"text": args.calibration, "tokens": args.tokens, "window": args.window}
        fronts = {}
        for name, options in runs(model, text, args.slow).items():
            began = time.time()
            device = args.device if options.text else "cpu"
            fronts[name] = search(
                args.model, Path(temporary) / name, options, machine=Machine(device), keep_calibration=calibration.keep
            )
            print(f"  searched by {name} ({time.time() - began:.0f} s)", flush=True)
        for row in ROWS:
            if row.run not in fronts or (row.refined and row.refined not in args.refine.split(",")):
                continue
            for column, count in enumerate(counts):
                chosen = best(fronts[row.run], count / heads, row)
                if chosen is None:
                    continue
                began = time.time()
                layout = RunFolder(Path(temporary) / row.run).layout(int(chosen["layout"]))
                if row.refined:
                    merged = calibrated.refined(
                        layout, MERGES[row.merge], RefineOptions(args.scope, tokens=args.refine_tokens)
                    )
                else:
                    merged = (calibrated if row.calibrated else uncalibrated).merged(layout, MERGES[row.merge])
                with model.installed(layout, merged) as regrouped:
                    value = nll(regrouped, evaluation) - original
                found.setdefault(row.name, [None] * len(counts))[column] = value
                print(f"  KV {count}/{heads} {row.name}: {value:+.4f} ({time.time() - began:.0f} s)", flush=True)

    print("\n| | " + " | ".join(f"KV {k / heads:.3g}" for k in counts) + " |\n|" + " --- |" * (len(counts) + 1))
    for name, values in found.items():
        print(f"| {name} | " + " | ".join("" if v is None else f"{v:+.3f}" for v in values) + " |")
    summary(found, counts, heads)
    if args.json:
        args.json.write_text(
            json.dumps({"original": original, "kv_heads": counts, "over_original": found}, indent=2) + "\n"
        )


def summary(found: dict, counts: list[int], heads: int) -> None:
    """Print spectral and refined merges against the best layout by weight-sharing error, with K and V grouped alike."""

    def least(prefix: str, column: int, refined: bool) -> float | None:
        names = [n for n in found if n.startswith(prefix) and n.endswith(", refined") == refined and "apart" not in n]
        return min((found[n][column] for n in names if found[n][column] is not None), default=None)

    for column, count in enumerate(counts):
        weight, plain, refined = (
            least("weight", column, False),
            least("spectral,", column, False),
            least("spectral,", column, True),
        )
        ours = f"spectral {plain:+.3f} (1/{weight / plain:.1f})"
        line = f"KV {count}/{heads}: best weight-sharing error {weight:+.3f}, {ours}"
        print(line + ("" if refined is None else f", refined {refined:+.3f} (1/{weight / refined:.1f})"))


if __name__ == "__main__":
    main()
