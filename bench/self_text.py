"""Own answers against documentation as the text that a model is calibrated and refined on.

    python bench/fetch_real_models.py
    M=.real-models
    python bench/self_text.py $M/Qwen2.5-Coder-0.5B-Instruct --text $M/mixed-calibration.jsonl \\
        --evaluation english=$M/wikipedia-evaluation.txt --evaluation code=$M/python-evaluation.jsonl \\
        --kv-ratio 0.5 --device cuda --json self_text.json
    python bench/self_text.py demo --text demo --evaluation held-out=demo --tokens 2048 --refine-tokens 2048 \\
        --answers 16 --longest 128 --window 256 --limit 8       # a small one, on a CPU

The model is regrouped twice, from --text and from its own answers (`--text self`), with the same tokens and options.
Both are measured on --evaluation, on new answers of the original to the prompts that `self` has answered, and on its
answers to prompts that nothing has seen (bench/unseen_prompts.txt). Lengths are of --answers answers to these, sampled
by the original and by both models.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grouper import Checkpoint
from grouper.calibration.own_answers import OwnAnswers, Writer, prompts_of
from grouper.calibration.source import TextSource
from grouper.machine import Machine
from grouper.refinement.options import RefineOptions
from search import SearchOptions
from search.evaluation.models import evaluate_model
from search.one_call import regroup_into
from search.runs.selection import Selection

UNSEEN = f"self:{Path(__file__).with_name('unseen_prompts.txt')}"
SEED = 7  # of the answers that are measured on; calibration has another


@dataclass(frozen=True)
class Bench:
    """A model and what is asked of it. folder: for everything that is written."""

    args: argparse.Namespace
    folder: Path
    machine: Machine

    def answers(self, text: str) -> TextSource:
        """New answers of the original to the prompts of `self` or `self:FILE`."""
        checkpoint, tokens = Checkpoint.open(self.args.model), self.args.limit * self.args.window
        asked = OwnAnswers.of(TextSource(text), checkpoint, tokens, SEED, self.machine.device)
        path = asked.path(self.folder / "answers")
        asked.write(path, self.machine)
        return TextSource(str(path), purpose="evaluation")

    def regrouped(self, name: str, text: str) -> Path:
        out, args = self.folder / name, self.args
        regroup_into(
            args.model, out, Selection(kv_ratio=args.kv_ratio), SearchOptions(text=text, tokens=args.tokens),
            RefineOptions(tokens=args.refine_tokens), machine=self.machine,
        )  # fmt: skip
        return out

    def lengths(self, model: str) -> dict[str, float]:
        """Mean tokens of the model's answers to unseen prompts, and the share cut off at --longest."""
        prompts, count = prompts_of(TextSource(UNSEEN)), self.args.answers
        writer, rows = Writer.open(Checkpoint.open(model), self.machine.device, prompts, self.args.longest), []
        while len(rows) < count:
            rows += writer.batch(len(rows), min(64, count - len(rows)), SEED)
        tokens = [row.answer_tokens for row in rows]
        return {"mean": sum(tokens) / len(tokens), "cut": sum(n >= writer.longest for n in tokens) / len(tokens)}


def tables(found: dict[str, Any]) -> str:
    texts = list(found["rows"][1]["texts"])
    lines = [f"{found['model']} at {found['kv_ratio']} of its cache on {found['device']}, refined on "
             f"{found['refine_tokens']:,} tokens.", ""]  # fmt: skip
    lines += [f"| calibrated on | {' | '.join(f'{n}: nats over | {n}: KL' for n in texts)} | mean answer | cut off |"]
    lines += ["|" + " --- |" * (3 + 2 * len(texts))]
    for row in found["rows"]:
        cells = [f"{of['over']:+.4f} ±{of['se']:.4f} | {of['kl']:.4f}" for of in row["texts"].values()]
        cells = cells or [" | "] * len(texts)
        length = row["lengths"]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {length['mean']:.0f} | {length['cut']:.0%} |")
    return "\n".join(lines)


def values(measured: Any, name: str) -> dict[str, float]:
    """Nats over the original with standard error, and KL, of one text."""
    after, before = measured.values, measured.original
    return {"over": after[f"nll:{name}"] - before[f"nll:{name}"], "se": after[f"nll_se:{name}"],
            "kl": after[f"kl:{name}"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder, or demo")
    parser.add_argument("--tables", type=Path, help="print what an earlier --json holds")
    parser.add_argument("--text", help="documentation to calibrate and refine on")
    parser.add_argument("--evaluation", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--kv-ratio", default="0.5")
    parser.add_argument("--tokens", type=int, default=32_768, help="of calibration")
    parser.add_argument("--refine-tokens", type=int, default=131_072)
    parser.add_argument("--window", type=int, default=1024, help="of evaluation")
    parser.add_argument("--limit", type=int, default=48, help="windows of each evaluation text")
    parser.add_argument("--answers", type=int, default=64, help="answers whose lengths are taken")
    parser.add_argument("--longest", type=int, default=1024, help="most tokens of these answers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.tables:
        print(tables(json.loads(args.tables.read_text())))
        return
    with tempfile.TemporaryDirectory() as temporary:
        print(tables(measured(args, Path(temporary))))


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    machine = Machine(args.device, tell=lambda line: print(f"  {line}", flush=True))
    bench = Bench(args, folder, machine)
    texts = {name: TextSource(file, purpose="evaluation") for name, file in (p.split("=", 1) for p in args.evaluation)}
    texts |= {"own": bench.answers("self"), "unseen": bench.answers(UNSEEN)}
    rows: list[dict[str, Any]] = [{"name": "original", "texts": {}, "lengths": bench.lengths(args.model)}]
    found = {
        "model": Path(args.model).name, "kv_ratio": args.kv_ratio, "refine_tokens": args.refine_tokens, "rows": rows,
        "device": torch.cuda.get_device_name() if "cuda" in machine.device else "CPU",
    }  # fmt: skip
    for name, text in (("documentation", args.text), ("self", "self")):
        began = time.perf_counter()
        out = bench.regrouped(name, text)
        took = time.perf_counter() - began
        result = evaluate_model(out, texts, base=args.model, window=args.window, limit=args.limit, machine=machine)
        of_texts = {text: values(result, text) for text in texts}
        rows.append({"name": name, "texts": of_texts, "lengths": bench.lengths(str(out)), "seconds": took})
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
