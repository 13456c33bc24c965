"""Compare two versions of Grouper, an older commit and the working tree, run side by side on one machine.

    python bench/same.py HEAD~3                              # all models and steps, ten minutes on two cores
    python bench/same.py main --only separate,t5 --steps search,export
    python bench/same.py main --tolerance 1e-6 --keep /tmp/both

Models: the bundled one, two encoders, and a tiny model for each form in which attention is stored. Each goes through
search, evaluate, export (each class, refined, and GGUF), uptrain and report, with work for seconds. Only the command
line is used (`python -m cli`), so that modules may move. Compared are tables, JSON, tensors, GGUF files, facts of
reports, the output of --json, and the logits of exports, with and without a cache. One line for each model and step
says whether the results are equal bit for bit, or how much they differ: the largest difference relative to the largest
value of that tensor, column or number. These changes are listed and allowed: files, columns and keys that the older
version lacks, changed sentences, and commands that it refused and that succeed now. Both versions run on this Python,
with its packages. The exit code is 1 if a difference exceeds --tolerance.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.update(  # before torch is imported, which would start threads, and threads do not survive a fork
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)  # fmt: skip

import pandas as pd
import same_logits
from same_files import Found
from same_models import SAMPLES, Sample, make, write_texts
from same_versions import Version, check_code, checked_out, copy_working_tree, ended, import_packages

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("search", "evaluate", "export", "uptrain", "report")
CLASSES = ("stock", "padded", "ragged")
NOT_FOUND = ("original", "neighbour", "random")  # methods in pareto.csv that are no search
SHOWN = 6  # lines of detail printed


class Comparison:
    """One model in both versions. models: folder of tiny models and texts."""

    def __init__(self, old: Version, new: Version, sample: Sample, models: Path, tolerance: float):
        self.versions, self.sample, self.models, self.tolerance = (old, new), sample, models, tolerance
        self.failed = False

    def places(self, *names: str) -> list[Path]:
        return [v.work.joinpath(self.sample.name, *names) for v in self.versions]

    def run(self, step: str, arguments: list[object], outputs: list[str]) -> bool:
        """Run a command in both versions. Returns whether both succeeded. outputs: files and folders that it writes."""
        return self.both(step, lambda version: version.command(*arguments), outputs)

    def both(self, step: str, work: Callable[[Version], object], outputs: list[str]) -> bool:
        """Do the work in both versions at the same time, compare the results and print the comparison."""
        found, began = Found(tuple(str(version.work) for version in self.versions)), time.monotonic()
        children = [v.start(self.sample.name, step, partial(work, v)) for v in self.versions]
        codes = ended(*children)
        if codes[0] == 0 and codes[1] == 0:
            for old, new in (self.places(name) for name in outputs):
                self.output(found, old, new)
            self.printed(found, *self.places(f"{step}.out"))
        else:
            self.refused(found, codes, *self.places(f"{step}.err"))
        self.tell(step, found, time.monotonic() - began)
        return codes == [0, 0]

    def output(self, found: Found, old: Path, new: Path) -> None:
        if not old.exists() or not new.exists():
            missing = [v.name for v, path in zip(self.versions, (old, new)) if not path.exists()]
            found.differ(f"{old.name} was not written by {' and '.join(missing)}")
        elif old.is_dir():
            found.folders(old, new)
        else:
            found.files(old.name, old, new)

    def printed(self, found: Found, old: Path, new: Path) -> None:
        """Compare the data on stdout, if it is JSON."""
        texts = old.read_text(), new.read_text()
        try:
            data = [json.loads(text) for text in texts]
        except ValueError:
            if texts[0] != texts[1]:
                found.notes.append("stdout reads otherwise")
            return
        found.data("stdout", *data)

    def refused(self, found: Found, codes: list[int], old: Path, new: Path) -> None:
        said = [(path.read_text().strip().splitlines() or ["nothing said"])[-1] for path in (old, new)]
        said = [re.sub(r"\S*/(\S*?)(\.\w+\.partial)?(?=\s|$)", r"\1", line) for line in said]  # paths differ
        if codes[0] == 0:
            found.differ(f"exit {codes[1]}, where the old one goes through: {said[1]}")
        elif codes[1] == 0:
            found.notes.append(f"goes through, where the old one ended with {codes[0]}: {said[0]}")
        else:
            found.notes.append(f"both end with an error: {said[0]}")
            if said[0] != said[1]:
                found.notes.append(f"the new one says: {said[1]}")
            if codes[0] != codes[1]:
                found.differ(f"exit {codes[0]} became {codes[1]}")

    def tell(self, step: str, found: Found, seconds: float) -> None:
        """Print the result of a step. With tolerance 0 only equality is a success; nothing to compare is a failure."""
        bad = [(where, much) for where, much in found.differences if much > self.tolerance or not self.tolerance]
        if bad or not (found.compared or found.notes):
            self.failed = True
        largest = max((much for _, much in found.differences), default=0.0)
        verdict = "DIFFERS" if bad else "same" if not found.differences else f"within {largest:.2g}"
        if not found.compared:
            verdict = "DIFFERS" if bad else "not compared"
        elif bad and math.isfinite(largest):
            verdict += f" by up to {largest:.2g}"
        print(f"{self.sample.name:<14} {step:<17} {verdict} ({found.compared} compared, {seconds:.0f} s)")
        largest_first = sorted(found.differences, key=lambda difference: -difference[1])
        details = [f"{where}{'' if math.isinf(much) else f' by {much:.2g}'}" for where, much in largest_first]
        for line in (*details[:SHOWN], *([f"and {len(details) - SHOWN} more"] if details[SHOWN:] else ())):
            print(f"    differs: {line}")
        for note in found.notes[:SHOWN]:
            print(f"    {note}")
        sys.stdout.flush()


def go_through(c: Comparison, steps: set[str]) -> None:
    """Run all commands of `steps` on one model; later ones use the results of earlier ones."""
    sample = c.sample
    model = "demo" if sample.family == "demo" else c.models / sample.name
    kind, window = ("tsv" if sample.pairs else "txt"), (24 if sample.encoder else 128)
    text, other = (["--text", c.models / f"{name}.{kind}", "--window", window] for name in ("text", "other"))
    calibrated = [*text, "--tokens", 2048]
    searching = ["--population", 8, "--generations", 2, "--jobs", 1, "--json"]
    if not c.run("search", ["search", model, "-o", "run", *calibrated, *searching], ["run"]):
        return
    chosen = layouts(c.places("run", "pareto.csv")[0])
    if "evaluate" in steps:
        measured = ["evaluate", "run", *other, "--limit", 4, "--json", "--layouts"]
        c.run("evaluate", [*measured, ",".join(map(str, sorted({0, *chosen.values()})))], ["run"])
        if sample.thorough:
            refined = [max(chosen.values()), "--refine", "--refine-tokens", 512]
            c.run("evaluate refined", [*measured, *refined], ["run"])
    if steps & {"export", "uptrain"}:
        written = exported(c, chosen, [*calibrated, "--refine", "--refine-tokens", 1024, "--json"], "export" in steps)
        if "uptrain" in steps:
            uptrained(c, [w for w in ("stock", "ragged")[: 1 + sample.thorough] if w in written], model, text[:2])
    if "report" in steps:
        c.run("report", ["report", "run", "-o", "report.html"], ["report.html"])


def layouts(table: Path) -> dict[str, int]:
    """The layout of each class, among those that a search found, that is nearest to half of the grouped heads."""
    rows = pd.read_csv(table)
    size = "weight_ratio" if "weight_ratio" in rows else "kv_ratio"
    rows = rows[~rows["method"].isin(NOT_FOUND) & (rows[size] < 1)]
    rows = rows.assign(far=(rows[size] - 0.5).abs()).sort_values(["far", "layout"])
    return {name: int(some["layout"].iloc[0]) for name in CLASSES if len(some := rows[rows["deploy"] == name])}


def exported(c: Comparison, chosen: dict[str, int], options: list[object], every: bool) -> list[str]:
    """Folders that both versions wrote. every: also export forms that training does not need, and compare logits."""
    written = []
    for name, layout in chosen.items():
        scope = "block" if name == "ragged" else "attention"
        if not every and name == "padded":
            continue
        asked = ["export", "run", "-o", name, "--layout", layout, "--max-padding", "900%", "--scope", scope, *options]
        if c.run(f"export {name}", asked, [name]):
            written.append(name)
    if every:
        asked = ["export", "run", "-o", "gguf", "--layout", max(chosen.values()), "--format", "gguf", "--json"]
        c.run("export gguf", asked, ["gguf"])
        if written:
            file = "logits.safetensors"
            c.both("logits", lambda version: same_logits.write(file, written), [file])
    return written


def uptrained(c: Comparison, written: list[str], model: object, text: list[object]) -> None:
    budget = ["--tokens", 2048, "--step-tokens", 256, "--micro-tokens", 128, "--window", 64, "--lr", 1e-3, "--json"]
    for name in written:
        asked = ["uptrain", name, "-o", f"{name}-healed", "--base", model, *text, *budget]
        c.run(f"uptrain {name}", asked, [f"{name}-healed"])


def chosen_names(text: str | None, known: tuple[str, ...], what: str) -> set[str]:
    names = set(known) if text is None else {name.strip() for name in text.split(",")}
    if strange := sorted(names - set(known)):
        raise SystemExit(f"there is no {what} {strange[0]!r}: expected {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the older version: anything that git knows as a commit")
    parser.add_argument("--only", help=f"models, with commas: {', '.join(s.name for s in SAMPLES)}")
    parser.add_argument("--steps", help=f"with commas, search always: {', '.join(STEPS)}")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative difference that is allowed")
    parser.add_argument("--keep", type=Path, help="folder for all that was written; must not exist")
    args = parser.parse_args()
    only = chosen_names(args.only, tuple(s.name for s in SAMPLES), "model")
    steps = chosen_names(args.steps, STEPS, "step")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that cleanup runs
    import_packages()
    place = Path(tempfile.mkdtemp(prefix="same-")).resolve()
    began, failed = time.monotonic(), []
    try:
        with checked_out(ROOT, args.commit, place / "old-tree"):
            old, new = (Version(name, place / f"{name}-tree", place / name) for name in ("old", "new"))
            copy_working_tree(ROOT, new.tree)
            for folder in (old.work, new.work, place / "models"):
                folder.mkdir()
            check_code(old), check_code(new)
            write_texts(place / "models")
            tokenizer = next(old.tree.rglob("demo/tokenizer.json")).parent
            for sample in (s for s in SAMPLES if s.name in only):
                model = place / "models" / sample.name
                if sample.family != "demo":
                    child = old.start(".", "make", partial(make, sample, model, tokenizer))
                    if ended(child) != [0]:
                        raise SystemExit((old.work / "make.err").read_text())
                comparison = Comparison(old, new, sample, place / "models", args.tolerance)
                go_through(comparison, steps)
                failed += [sample.name] if comparison.failed else []
        if args.keep:
            shutil.move(place, args.keep)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{'different: ' + ', '.join(failed) if failed else 'the same'}, after {minutes:.1f} minutes")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
