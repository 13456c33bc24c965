"""Healing from different starts: nats over the original against tokens trained, on text used for no tuning.

    python bench/healing.py --novels eltec_eng.txt.xz --json healing.json    # one GPU
    python bench/healing.py --model FOLDER --calibration A.txt --text A.txt --evaluation B.txt --kv-heads 2,1
    python bench/healing.py --picture healing.json [...] -o docs/healing.svg    # a table and a picture of several

--novels: English novels (see bench/train_demo_model.py). The training text is then 16 million characters of them, and
the addresses of 1977-2016 four times. Every start is an ordinary export (search, merge, perhaps refinement, on the
calibration text). It is then trained by distillation, on the same windows in the same order for all starts. The
evaluation text is used for neither calibration nor training, nor for choosing the weights to keep. KL is on held-out
windows of the training text.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch

from grouper import Checkpoint, UptrainOptions
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import DEMO_TEXTS, TextSource
from grouper.calibration.text import load_tokenizer, windows
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.export import export_model
from grouper.machine import Machine
from grouper.merging import MERGES
from grouper.ranks import ALONE
from grouper.refinement.options import RefineOptions
from grouper.refinement.refine import deterministic
from grouper.running.in_memory import InMemoryModel
from grouper.threads import one_thread
from grouper.uptraining.distributed import accelerator_for
from grouper.uptraining.division import divisions
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.saved import SavedTraining
from grouper.uptraining.student import Student
from grouper.uptraining.teacher import Teacher
from grouper.uptraining.training import Training
from search import RunFolder, SearchOptions, search
from search.methods.exact import LIMIT

NEAR = (0.05, 0.02)  # nats over the original


@dataclass(frozen=True)
class Start:
    """A start of healing. run: name in `searches`. methods: whose layouts are used. equal: only groups of one size."""

    name: str
    run: str
    methods: tuple[str, ...]
    merge: str
    equal: bool = False
    refined: bool = False


STARTS = [
    Start("neighbours, mean (GQA)", "weight", ("neighbour",), "mean"),
    Start("QCQA-AC, mean", "weight", ("exact", "qcqa-ac"), "mean"),
    Start("AsymGQA, mean", "activation", ("asymgqa",), "mean"),
    Start("KDGQA, mean", "activation", ("kdgqa",), "mean"),
    Start("neighbours, weighted (WGQA)", "weight", ("neighbour",), "weighted"),
    Start("neighbours, Procrustes", "weight", ("neighbour",), "procrustes"),
    Start("spectral, equal sizes", "spectral", ("qcqa-ac", "qcqa-ec"), "spectral", equal=True),
    Start("spectral, equal sizes, refined", "spectral", ("qcqa-ac", "qcqa-ec"), "spectral", equal=True, refined=True),
]


def searches(heads: int, text: dict) -> dict[str, SearchOptions]:
    exact = ("exact",) if heads <= LIMIT else ("qcqa-ac", "qcqa-ec")
    return {
        "weight": SearchOptions(exact, "weight"),
        "activation": SearchOptions(("asymgqa", "kdgqa", "qcqa-ec"), "activation", **text),
        "spectral": SearchOptions(("qcqa-ac", "qcqa-ec"), **text),
    }


class Bench:
    """A model, its texts and its searches."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.device = args, folder, args.device
        self.checkpoint = Checkpoint.open(args.model)
        self.model = InMemoryModel(self.checkpoint, args.device)
        self.heads = self.model.architecture.kv_heads
        tokenizer = load_tokenizer(self.checkpoint)
        source = TextSource(args.evaluation, purpose="evaluation")
        self.evaluation = windows(source, tokenizer, args.window, args.limit)
        self.original = nll(self.model.model, self.evaluation)
        keep = folder / "kept"
        self.calibration = Calibration(TextSource(args.calibration), args.tokens, args.window, keep)
        self.regrouper = Regrouper(self.checkpoint, self.calibration, args.device)
        self.text = {"text": args.calibration, "tokens": args.tokens, "window": args.window}
        self.keep = keep

    def layout(self, start: Start, count: int):
        """The start's best layout with `count` KV heads in every layer, and the method that found it."""
        options = searches(self.heads, self.text)[start.run]
        device = self.device if options.text else "cpu"
        front = search(
            self.args.model,
            self.folder / start.run,
            options,
            machine=Machine(device=device),
            keep_calibration=self.keep,
        )
        rows = front.found_by(*start.methods)
        rows = rows[(rows["kv_ratio"] - count / self.heads).abs() < 1e-6]
        rows = rows[rows["deploy"].isin(["stock"] if start.equal else ["stock", "padded"])]
        if rows.empty:  # key-driven layouts differ in group sizes between layers
            rows = front.found_by(*start.methods)
            rows = rows[(rows["kv_ratio"] - count / self.heads).abs() < 1e-6]
        best = rows.sort_values(["error", "layout"]).iloc[0]
        return RunFolder(self.folder / start.run).layout(int(best["layout"]))

    def exported(self, start: Start, count: int) -> Path:
        layout, merge = self.layout(start, count), MERGES[start.merge]
        if layout.only_mean:
            merge = MERGES["mean"]
        origin = None
        if start.refined:
            options = RefineOptions(tokens=self.args.refine_tokens)
            merged, seen = self.regrouper.refined(layout, merge, options), self.regrouper.seen(options)
            facts = {"tokens": seen.used * seen.window, "steps": 0, "scope": options.scope, "seen": seen.to_data()}
            origin = {"refined": facts}
        else:
            merged = self.regrouper.merged(layout, merge)
        place = self.folder / f"{start.name.replace(' ', '-')}-{count}"
        export_model(self.checkpoint, layout, place, merge=merge.name, merged=merged, origin=origin)
        return place

    def heal(self, folder: Path, options: UptrainOptions) -> dict:
        """Curve of one training: {"tokens": [...], "over": [...], "held_out_kl": [...], "seconds": ...}."""
        model = ExportedModel.open(folder, self.args.model)
        text = next(divisions(model, TextSource(self.args.text), options, self.device))
        options, texts = text.plan, (text.learnt, text.judged)
        dtype = torch.bfloat16 if "cuda" in self.device else torch.float32
        teacher = Teacher(InMemoryModel(self.checkpoint, self.device, dtype))
        saved = SavedTraining(self.folder / "training" / folder.name)
        with deterministic():
            student = Student(model, METHODS[options.method], self.device)
            training = Curve(
                accelerator_for(self.device, options, saved), student, teacher, texts, options, saved, ALONE
            )
            training.watch(self.evaluation, self.original)
            began = time.time()
            training.run()
        seconds = time.time() - began - training.watching
        return {"tokens": training.tokens, "over": training.over, "held_out_kl": training.kls, "seconds": seconds}


def mixed_text(novels: Path, folder: Path) -> str:
    """Path of a file with the novels and, to give them weight, the addresses four times."""
    from train_demo_model import read_novels

    text, _ = read_novels(novels)
    stretches = "\n\n".join(text[i * len(text) // 8 :][:3_000_000] for i in range(8))
    addresses = DEMO_TEXTS["calibration"].read_text(encoding="utf-8")
    path = folder / "mixed.txt"
    path.write_text("\n\n".join([addresses] * 4) + f"\n\n{stretches}"[:16_000_000] + "\n", encoding="utf-8")
    return str(path)


class Curve(Training):
    """A training that is evaluated during its course on text that it does not see."""

    def watch(self, evaluation, original: float) -> None:
        self.evaluation, self.original, self.watching = evaluation, original, 0.0
        self.tokens, self.over, self.kls = [], [], []

    def look(self) -> None:
        began = time.time()
        self.tokens.append(self.reached.step * self.plan.step_tokens)
        with one_thread():  # one batch after the other: a student does not support several threads
            self.over.append(nll(self.student.model, self.evaluation) - self.original)
        self.kls.append(self.score().kl)
        self.watching += time.time() - began

    def judge(self) -> None:
        super().judge()
        self.look()


def tokens_to(curve: dict, near: float) -> int | None:
    """Tokens trained until the curve first comes within `near`, or None."""
    return next((t for t, over in zip(curve["tokens"], curve["over"]) if over <= near), None)


def table(results: list[dict]) -> str:
    """Markdown: start, loss before and after, tokens until near the original."""
    lines = []
    for share in sorted({r["kv_ratio"] for r in results}, reverse=True):
        heads = [f"to +{near}" for near in NEAR]
        lines += [f"| KV {share:.3g} | start | healed | KL | {' | '.join(heads)} |", "|" + " --- |" * (4 + len(NEAR))]
        for r in sorted((r for r in results if r["kv_ratio"] == share), key=lambda r: -r["held_out_kl"][-1]):
            reached = [tokens_to(r, near) for near in NEAR]
            cells = ["not reached" if t is None else f"{t / 1e6:.2f}M" for t in reached]
            cells = [f"{r['over'][0]:+.3f}", f"{r['over'][-1]:+.4f}", f"{r['held_out_kl'][-1]:.3f}", *cells]
            lines.append(f"| {r['start']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "grouper", "font.size": 8})
    shares = sorted({r["kv_ratio"] for r in results}, reverse=True)
    figure, axes = pyplot.subplots(1, len(shares), figsize=(3.6 * len(shares), 3.2), sharey=True, squeeze=False)
    names = list(dict.fromkeys(r["start"] for r in results))
    for axis, share in zip(axes[0], shares):
        for r in (r for r in results if r["kv_ratio"] == share):
            colour = f"C{names.index(r['start'])}"
            points = [t / 1e6 for t in r["tokens"]]
            axis.plot(points, r["held_out_kl"], color=colour, label=r["start"], linewidth=1.2)
        axis.set(yscale="log", title=f"{share:.1%} of the KV cache", xlabel="million tokens trained")
        axis.grid(alpha=0.25, which="both")
    axes[0][0].set_ylabel("KL to the original, text held out")
    axes[0][-1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--evaluation", default="demo")
    parser.add_argument("--text", default="demo", help="what is trained on")
    parser.add_argument("--novels", type=Path, help="in the place of --text")
    parser.add_argument("--kv-heads", default="8,4,2")
    parser.add_argument("--starts", help="words that their names contain, separated by semicolons; all unless given")
    parser.add_argument("--tokens", type=int, default=131_072, help="of calibration")
    parser.add_argument("--refine-tokens", type=int)
    parser.add_argument("--train-tokens", type=int)
    parser.add_argument("--methods", default="distill", help="ways to train; several with commas: a curve each")
    parser.add_argument("--lr", default="1e-4", help="several with commas: a curve each")
    parser.add_argument("--hidden", default="1", help="weight of hidden states; several with commas")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, nargs="+", help="results of earlier calls, to show together")
    parser.add_argument("-o", "--output", type=Path, default=Path("healing.svg"))
    args = parser.parse_args()
    if args.picture:
        results = [r for path in args.picture for r in json.loads(path.read_text())]
        draw(results, args.output)
        print(table(results))
        return
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        if args.novels:
            args.text = mixed_text(args.novels, Path(temporary))
        bench = Bench(args, Path(temporary))
        chosen = [s for s in STARTS if not args.starts or any(w in s.name for w in args.starts.split(";"))]
        for count in map(int, args.kv_heads.split(",")):
            for start in chosen:
                folder = bench.exported(start, count)
                rates, weights = (map(float, numbers.split(",")) for numbers in (args.lr, args.hidden))
                grid = product(args.methods.split(","), rates, weights)
                for method, lr, hidden in grid:
                    results.append(one(bench, start, count, folder, method, lr, hidden, args))
                    if args.json:
                        args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def one(bench: Bench, start: Start, count: int, folder: Path, method: str, lr: float, hidden: float, args) -> dict:
    losses = METHODS[method].losses
    losses = replace(losses, hidden=hidden) if losses.hidden else losses
    options = UptrainOptions(method, args.train_tokens, lr=lr, losses=losses, window=args.window, patience=0)
    curve = bench.heal(folder, options)
    shutil.rmtree(bench.folder / "training", ignore_errors=True)
    name = start.name if method == "distill" else f"{start.name}, by {method}"
    found = {"start": name, "kv_ratio": count / bench.heads, "lr": lr, "losses": asdict(losses), **curve}
    print(
        f"KV {count}/{bench.heads} {name}, lr {lr:g}, hidden {hidden:g}: {curve['over'][0]:+.4f} -> "
        f"{curve['over'][-1]:+.4f} nats, held-out KL {curve['held_out_kl'][-1]:.4f}, {curve['seconds']:.0f} s",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()
