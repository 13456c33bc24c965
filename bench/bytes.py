"""Two ways to save KV cache bytes, fewer heads and lower precision, compared in nats over the original with paired
standard errors.

    python bench/bytes.py demo --text demo --evaluation held-out=demo
    python bench/fetch_real_models.py
    python bench/bytes.py .real-models/Qwen2.5-Coder-0.5B-Instruct --text .real-models/mixed-calibration.jsonl \\
        --evaluation english=.real-models/wikipedia-evaluation.txt \\
        --evaluation code=.real-models/python-evaluation.jsonl --device cuda --json bytes.json

Layouts: all heads, and the best stock layouts within 1/2 and within 1/4 of the heads (spectral, refined as by `grouper
export`). Each is measured with its keys (after RoPE) and values in every KV cache type. Bytes are relative to the
original's cache and include scales. --gauge measures each a second time, with keys scaled for rounding. `python
bench/bytes.py --tables bytes.json` prints the tables of an earlier --json again.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bytes_tables import tables

from grouper import Checkpoint, GrouperError
from grouper.attention import Merged
from grouper.cache_types import CACHE_TYPES, CacheType
from grouper.calibration.calibration import TOKENS, Calibration
from grouper.calibration.source import TextSource
from grouper.calibration.text import text_of
from grouper.compress import Regrouper
from grouper.evaluation.closeness import Columns, Original, closeness_of, closeness_of_kept
from grouper.layout import HeadLayout
from grouper.machine import Machine
from grouper.merging import MERGES
from grouper.refinement.options import RefineOptions
from search import RunFolder, SearchOptions, pick, search

SHARES = {"1/2": "half", "1/4": "a quarter"}
KEPT = "bfloat16"  # the original's type, in which nothing is rounded


class Bench:
    """A model, its texts and its search. `found` is the content of --json."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.machine = args, folder, Machine(device=args.device)
        self.device, self.checkpoint = self.machine.device, Checkpoint.open(args.model)
        self.calibration = Calibration(TextSource(args.text), tokens=args.tokens, keep=folder / "kept")
        self.regrouper = Regrouper(self.checkpoint, self.calibration, self.device)
        self.kinds = [CACHE_TYPES[name] for name in args.kv_cache.split(",")]
        texts = dict(pair.split("=", 1) for pair in args.evaluation)
        self.originals = {name: Original.of(self.regrouper.model, self.text(file)) for name, file in texts.items()}
        self.found: dict[str, Any] = {
            "model": self.checkpoint.title, "window": args.window, "refined": not args.not_refined,
            "device": torch.cuda.get_device_name() if "cuda" in self.device else "CPU",
            "texts": {name: Path(file).name for name, file in texts.items()},
            "tokens": {name: one.batch.numel() for name, one in self.originals.items()},
            "original": {name: one.columns["nll"] for name, one in self.originals.items()}, "rows": [],
        }  # fmt: skip

    def text(self, file: str):
        source = TextSource(file, purpose="evaluation")
        return text_of(self.checkpoint, source, self.args.window, self.args.limit)

    def run(self) -> None:
        whole = self.regrouper.architecture.ungrouped
        self.measure("all", whole, None)
        wanted = {share: name for share, name in SHARES.items() if name in self.args.heads.split(",")}
        if not wanted:
            return
        began = time.perf_counter()
        options = SearchOptions(text=self.args.text, tokens=self.args.tokens)
        search(self.args.model, self.folder / "run", options, machine=self.machine, keep_calibration=True)
        self.say("search", began)
        folder = RunFolder.open(self.folder / "run")
        for share, name in wanted.items():
            try:
                picked = pick(folder.front(), "spectral+refine", kv_ratio=share, deploy="stock")
            except GrouperError as error:
                print(f"{name}: {error}", flush=True)
                continue
            layout = folder.layout(picked.layout)
            if list(layout.kv_heads) not in [row["kv_heads"] for row in self.found["rows"]]:
                self.measure(name, layout, self.merged(name, layout))

    def merged(self, name: str, layout: HeadLayout) -> Merged:
        began, merge = time.perf_counter(), MERGES["spectral"]
        if self.args.not_refined:
            merged = self.regrouper.merged(layout, merge)
        else:
            options = RefineOptions(tokens=self.args.refine_tokens) if self.args.refine_tokens else RefineOptions()
            merged = self.regrouper.refined(layout, merge, options, self.folder / f"refined {name}")
        for layer in range(len(layout.layers)):
            merged(layer)
        self.say(f"{name}: merged", began)
        return merged

    def measure(self, name: str, layout: HeadLayout, merged: Merged | None) -> None:
        """Add one row for each KV cache type, and a second one with --gauge. merged: None for the original's
        weights."""
        self.measure_as(name, layout, merged)
        if self.args.gauge:
            own = merged or self.regrouper.merged(layout, MERGES["mean"])
            gauged = self.regrouper.gauged(layout, own)
            layers = [gauged(layer) for layer in range(len(layout.layers))]
            strengths = [gauge.strengths for gauge in gauged.gauges.values()]
            print(f"strengths by layer and KV head: {strengths}", flush=True)
            self.measure_as(f"{name}, gauged", layout, layers.__getitem__)

    def measure_as(self, name: str, layout: HeadLayout, merged: Merged | None) -> None:
        for kind in self.kinds:
            began = time.perf_counter()
            try:
                kind.check(self.regrouper.architecture.head_dim, self.regrouper.architecture.family.position)
            except GrouperError as error:
                print(f"{kind.name}: {error}", flush=True)
                continue
            texts = {text: self.values(one, layout, merged, kind) for text, one in self.originals.items()}
            self.found["rows"].append(
                {
                    "heads": name, "kv_heads": list(layout.kv_heads), "kv_cache": kind.name, "bits": kind.bits,
                    "bytes": layout.kv_bytes_per_token(kind.name) / layout.whole.kv_bytes_per_token(KEPT),
                    "texts": texts,
                }
            )  # fmt: skip
            over = ", ".join(f"{text} {value['over']:+.4f}" for text, value in texts.items())
            self.say(f"{name}, {kind.name}: {over}", began)
            if self.args.json:
                self.args.json.write_text(json.dumps(self.found, indent=1) + "\n")

    def values(self, original: Original, layout: HeadLayout, merged: Merged | None, kind: CacheType) -> dict:
        """Nats over the original with their standard error, and KL divergence from it with its standard error."""
        kept = None if kind.name == KEPT else kind
        found: Columns
        if merged is not None:
            found = closeness_of(self.regrouper.model, original, layout, merged, kept=kept)
        else:
            found = original.columns if kept is None else closeness_of_kept(original, kept)
        over = found["nll"] - original.columns["nll"]
        return {"over": over, "se": found["nll_se"], "kl": found["kl"], "kl_se": found["kl_se"]}

    def say(self, what: str, began: float) -> None:
        print(f"{what} ({time.perf_counter() - began:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder, or demo")
    parser.add_argument("--tables", type=Path, help="print what an earlier --json holds")
    parser.add_argument("--text", help="calibration and refinement text")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of calibration")
    parser.add_argument("--evaluation", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--window", type=int, default=512, help="tokens of evaluation's windows")
    parser.add_argument("--limit", type=int, default=64, help="windows of each evaluation text")
    parser.add_argument("--heads", default="half,a quarter", help="what is measured beside all heads")
    parser.add_argument("--kv-cache", default="bfloat16,fp8,fp8-scaled,q8_0,q4_0,quanto4")
    parser.add_argument("--not-refined", action="store_true", help="merged alone: quick, and worse")
    parser.add_argument("--refine-tokens", type=int)
    parser.add_argument("--gauge", action="store_true", help="measure with scaled keys and values, too")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.tables:
        print(tables(json.loads(args.tables.read_text())))
        return
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args, Path(temporary))
        bench.run()
    print(tables(bench.found))


if __name__ == "__main__":
    main()
