"""Every method of making one real model's cache smaller: nats over the original, for each text and by position.

    python bench/fetch_real_models.py
    python bench/real.py .real-models/Qwen2.5-Coder-0.5B-Instruct --text .real-models/mixed-calibration.jsonl \\
        --evaluation english=.real-models/wikipedia-evaluation.txt \\
        --evaluation code=.real-models/python-evaluation.jsonl --kv-ratio 0.75,0.5 --json real.json

Calibration, refinement and training use only --text; evaluation uses only the other texts. Each method is represented
by its best layout within the KV ratio, of any export class. Refinement and training are run once per seed, and the
table has their mean. Each measurement is written to --json at once; `python bench/real.py --tables real.json` prints
the tables again.
"""

import argparse
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from real_tables import tables

from grouper import Checkpoint, HeadLayout, UptrainOptions, uptrain_model
from grouper.attention import Merged
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer, text_of
from grouper.compress import Regrouper
from grouper.evaluation.closeness import Columns, Original, closeness_of
from grouper.evaluation.tasks import TaskOptions, Tasks
from grouper.export import export_model
from grouper.machine import Machine
from grouper.merging import MERGES, merge_for
from grouper.refinement.options import RefineOptions
from grouper.running.in_memory import InMemoryModel
from grouper.uptraining.exported import ExportedModel
from search import ParetoFront, RunFolder, SearchOptions, search

SAME = 1e-6


@dataclass(frozen=True)
class Row:
    """A row of the table. run: name of the search. methods: whose layouts are used. then: treatment after the merge."""

    name: str
    run: str
    methods: tuple[str, ...]
    merge: str
    then: str = ""


SPECTRAL = ("spectral", ("qcqa-ac", "qcqa-ec"), "spectral")
ROWS = [
    Row("neighbours, mean (GQA)", "weight", ("neighbour",), "mean"),
    Row("QCQA, mean", "weight", ("qcqa-ac", "qcqa-ec"), "mean"),
    Row("AsymGQA, mean", "activation", ("asymgqa",), "mean"),
    Row("QCQA's layout, Procrustes", "weight", ("qcqa-ac", "qcqa-ec"), "procrustes"),
    Row("spectral", *SPECTRAL),
    Row("refined", *SPECTRAL, then="refined"),
    Row("healed", *SPECTRAL, then="healed"),
]


class Bench:
    """A model, its texts and its searches. `found` is the content of --json."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.device = args, folder, args.device
        self.checkpoint = Checkpoint.open(args.model)
        self.calibration = Calibration(TextSource(args.text), keep=folder / "kept")
        self.regrouper = Regrouper(self.checkpoint, self.calibration, args.device)
        self.evaluation = dict(pair.split("=", 1) for pair in args.evaluation)
        self.tasks = (
            Tasks(TaskOptions(tuple(args.tasks.split(",")), args.task_path, args.task_limit, 0)) if args.tasks else None
        )
        self.originals = {
            name: Original.of(self.regrouper.model, self.text(file)) for name, file in self.evaluation.items()
        }
        texts = {"calibration": args.text, **self.evaluation}
        self.found: dict[str, Any] = {
            "model": Path(args.model).name, "device": device_name(args.device), "window": args.window,
            "texts": {name: {"file": Path(file).name, "sha256": sha256(file)} for name, file in texts.items()},
            "tokens": {name: one.batch.numel() for name, one in self.originals.items()},
            "original": {name: values(one.columns) for name, one in self.originals.items()}, "rows": [],
        }  # fmt: skip
        if self.tasks:
            self.found["original_tasks"] = self.scores(None)

    def text(self, file: str):
        return text_of(self.checkpoint, TextSource(file, purpose="evaluation"), self.args.window, self.args.limit)

    def front(self, run: str) -> ParetoFront:
        place = self.folder / run
        if not (place / "pareto.csv").is_file():
            text = {"text": self.args.text}
            options = {
                "weight": SearchOptions(fitness="weight"),
                "activation": SearchOptions(("asymgqa",), "activation", **text),
                "spectral": SearchOptions(("qcqa-ac", "qcqa-ec"), **text),
            }[run]
            device = self.device if options.text else "cpu"
            with self.timed(f"search by {run}"):
                search(
                    self.args.model,
                    place,
                    options,
                    machine=Machine(device=device),
                    keep_calibration=self.calibration.keep,
                )
        return RunFolder.open(place).front()

    def layout(self, row: Row, kv_ratio: float) -> HeadLayout | None:
        """The best of the row's largest layouts within the ratio; None if the largest is more than 0.02 below it."""
        rows = self.front(row.run).found_by(*row.methods)
        rows = rows[(rows["kv_ratio"] <= kv_ratio + SAME) & (rows["deploy"] != "none")]
        rows = rows[rows["kv_ratio"] >= kv_ratio - 0.02]
        rows = rows[rows["kv_ratio"] >= rows["kv_ratio"].max() - SAME]
        if rows.empty:
            return None
        return RunFolder.open(self.folder / row.run).layout(
            int(rows.sort_values(["error", "layout"]).iloc[0]["layout"])
        )

    # Measurements

    def row(self, row: Row, kv_ratio: float, seed: int) -> None:
        layout = self.layout(row, kv_ratio)
        if layout is None:
            return
        began = time.perf_counter()
        if "cuda" in self.device:
            torch.cuda.reset_peak_memory_stats()
        model = self.regrouper.model
        if row.then == "healed":
            healed = self.healed(kv_ratio, seed)
            model = InMemoryModel(healed.base, self.device)
            model.replace_around(healed.around())
            layout, merged = healed.layout, healed.layer
        elif row.then == "refined":
            merged = self.refined(row, layout, kv_ratio, seed)
        else:
            merged = self.regrouper.merged(layout, merge_for(layout, MERGES[row.merge]))
            for layer in range(len(layout.layers)):
                merged(layer)
        took, peak = time.perf_counter() - began, self.peak()
        found = {n: values(closeness_of(model, one, layout, merged), one) for n, one in self.originals.items()}
        known = {"row": row.name, "kv_ratio": kv_ratio, "seed": seed, "seconds": took, "gigabytes": peak / 1e9}
        if self.tasks:
            known["tasks"] = self.scores((layout, merged), model)
        self.found["rows"].append({**known, "kv_heads": list(layout.kv_heads), "texts": found})
        self.keep()
        over = ", ".join(f"{name} {of['over']:+.4f} (KL {of['kl']:.4f})" for name, of in found.items())
        print(f"KV {kv_ratio:.3g} {row.name}, seed {seed}: {over} ({took:.0f} s)", flush=True)

    def refined(self, row: Row, layout: HeadLayout, kv_ratio: float, seed: int) -> Merged:
        """Refined weights; also written as an export if the row is to be healed."""
        merge = merge_for(layout, MERGES[row.merge])
        options = RefineOptions(tokens=self.args.refine_tokens, seed=seed, long_share=self.args.long_share)
        if self.args.larger > 1:
            plan, times = options.plan(self.device), self.args.larger
            steps = round(plan.steps_for(plan.tokens) / times)
            options = replace(plan, batch_tokens=times * plan.batch_tokens, steps=steps)
        done, seen = self.regrouper.refined(layout, merge, options), self.regrouper.seen(options)
        if "healed" in self.args.rows:
            facts = {"tokens": seen.used * seen.window, "steps": 0, "scope": "", "seen": seen.to_data()}
            place = self.place("refined", kv_ratio, seed)
            export_model(self.checkpoint, layout, place, merge=merge.name, merged=done, origin={"refined": facts})
        return done

    def healed(self, kv_ratio: float, seed: int) -> ExportedModel:
        out = self.place("healed", kv_ratio, seed)
        asked = {"tokens": self.args.train_tokens, "step_tokens": self.args.train_step_tokens}
        options = UptrainOptions(**asked, window=self.args.train_window, seed=seed)
        uptrain_model(
            self.place("refined", kv_ratio, seed), out, TextSource(self.args.train_text or self.args.text), options,
            base=self.args.model, machine=Machine(self.device, tell=lambda line: print(f"  {line}", flush=True)),
        )  # fmt: skip
        return ExportedModel.open(out, self.args.model)

    def place(self, what: str, kv_ratio: float, seed: int) -> Path:
        return self.folder / f"{what}-{kv_ratio:g}-{seed}"

    def scores(self, regrouped, model: InMemoryModel | None = None) -> dict[str, float]:
        model, tokenizer = model or self.regrouper.model, load_tokenizer(self.checkpoint)
        if regrouped is None:
            return self.tasks.scores(model.model, tokenizer)
        with model.installed(*regrouped) as installed:
            return self.tasks.scores(installed, tokenizer)

    # Time, memory and results

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.found.setdefault("steps", {})[what] = round(took, 1)
        print(f"{what}: {took:.0f} s", flush=True)

    def peak(self) -> int:
        if "cuda" in self.device:
            return torch.cuda.max_memory_allocated()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def keep(self) -> None:
        if self.args.json:
            self.args.json.write_text(json.dumps(self.found, indent=1) + "\n")


def values(one: Columns, original: Original | None = None) -> dict[str, Any]:
    """nll, nats over the original with standard error, KL, agreement, perplexity; for each band of positions (over,
    standard error)."""
    before = one if original is None else original.columns
    names = [name.removeprefix("nll@") for name in one if name.startswith("nll@")]
    bands = {band: (one[f"nll@{band}"] - before[f"nll@{band}"], one[f"nll_se@{band}"]) for band in names}
    kept = {name: one[name] for name in ("nll", "kl", "kl_se", "agreement", "perplexity")}
    return {**kept, "over": one["nll"] - before["nll"], "se": one["nll_se"], "bands": bands}


def sha256(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if "cuda" in device else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder")
    parser.add_argument("--tables", type=Path, help="print what an earlier --json holds")
    parser.add_argument("--text", help="calibration, refinement and training text")
    parser.add_argument("--train-text", help="training text, where it is another one")
    parser.add_argument("--evaluation", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--kv-ratio", default="0.75,0.5")
    parser.add_argument("--window", type=int, default=4096, help="of evaluation")
    parser.add_argument("--limit", type=int, default=48, help="windows of each evaluation text")
    parser.add_argument("--rows", default=",".join(row.then or "merged" for row in ROWS), help="merged,refined,healed")
    parser.add_argument("--refine-tokens", type=int)
    parser.add_argument("--long-share", type=float, help="of refinement's tokens, in long windows")
    parser.add_argument("--train-tokens", type=int, default=3_000_000)
    parser.add_argument("--larger", type=int, default=1, help="times the tokens of refinement's steps, as many fewer")
    parser.add_argument("--train-window", type=int, default=512, help="of training")
    parser.add_argument("--train-step-tokens", type=int, help="of a step of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", help="of lm-evaluation-harness, with commas")
    parser.add_argument("--task-path", type=Path)
    parser.add_argument("--task-limit", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.tables:
        print(tables(json.loads(args.tables.read_text())))
        return
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args, Path(temporary))
        for kv_ratio in map(float, args.kv_ratio.split(",")):
            for row in (row for row in ROWS if (row.then or "merged") in args.rows):
                for seed in range(args.seeds if row.then else 1):
                    bench.row(row, kv_ratio, seed)
    print(tables(bench.found))


if __name__ == "__main__":
    main()
