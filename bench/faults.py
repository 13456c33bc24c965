"""Outcomes of commands on damaged and hostile input: success, one clear line, or a fault, counted.

    python bench/faults.py                    # 1,140 damaged checkpoints, and 1,200 runs, outputs, options and names
    python bench/faults.py --quick            # a few of each class, as in the tests
    python bench/faults.py --only config --seed 7 --show       # what was said, case by case

One process imports everything once. Each case is a child of it with limits on memory and time; it runs inspect, search,
evaluate and export until one of them refuses. Outcomes are: clean (all succeeded, or one ended with exit code 1 and one
line), traceback, hang, and harm: the input was changed, a result has numbers that are not finite, files were left
behind, memory ran out, or a signal killed the child.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")

import damage_models
import damage_more
from damage import CLASSES as FIRST
from damage import OF_WORK, TEXT, Commands, all_commands
from measured import report

CLASSES = {**FIRST, **damage_models.CLASSES, **damage_more.CLASSES}
AROUND = (
    *OF_WORK,
    damage_models.quantised,
    *(cases for cases, _ in damage_more.CLASSES.values()),
)  # generators that return the commands to run
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
MEMORY = 6 * 2**30  # bytes of address space that a child may add to this process's
SECONDS = 60


@dataclass
class Outcome:
    kind: str  # clean, refused, traceback, hang, harm
    said: str


def attempt(work: Path, commands: Commands, joins: bool = False) -> Outcome:
    """Run all commands in a child of this process. joins: whether new files may appear in somebody's folder, such as a
    page or a calibration that was requested there; existing files must stay unchanged either way."""
    model, log = work / "model", work / "log"
    log.touch()
    before = {p: p.lstat().st_mtime_ns for folder in (model, work / "taken") for p in folder.glob("*")}
    child = os.fork()
    if child == 0:
        in_child(work, commands, log)
    status = waited(child, SECONDS)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return Outcome("hang", log.read_text(errors="replace")[-300:])
    said = log.read_text(errors="replace")
    if "Traceback (most recent call last)" in said or "internal error" in said:
        return Outcome("traceback", said[-600:])
    if os.WIFSIGNALED(status):
        return Outcome("harm", f"died of signal {os.WTERMSIG(status)}: {said[-300:]}")
    left = [p.name for p in work.rglob(".*") if p.name.endswith((".partial", ".lock", ".replaced"))]
    hacked = [p for p in (work / "HACKED", Path("HACKED"), model / "HACKED") if p.exists()]
    after = {p: p.lstat().st_mtime_ns for folder in (model, work / "taken") for p in folder.glob("*")}
    if CONTROLS.search(said):
        return Outcome("harm", f"control characters on the terminal: {said[-300:]!r}")
    changed = [p for p in {*before, *after} if before.get(p) != after.get(p)]
    if joins:
        changed = [p for p in changed if p in before or p.parent == model]
    if left or hacked or changed:
        return Outcome("harm", f"left {left or hacked or 'the model changed'}; {said[-300:]}")
    table = work / "run" / "pareto.csv"
    if table.is_file() and any(word in table.read_text(errors="replace").lower() for word in (",nan", ",inf", ",-inf")):
        return Outcome("harm", "numbers that are not finite in pareto.csv")
    lines = [line for line in said.splitlines() if line.startswith("grouper: ")]
    code = os.WEXITSTATUS(status)
    if code == 0:
        return Outcome("clean", "")
    if code == 2 and "Usage: " in said:
        return Outcome("refused", said.strip().splitlines()[-1])
    if code == 1 and len(lines) == 1 and len(lines[0]) < 600:
        return Outcome("refused", lines[0])
    return Outcome("traceback", f"exit {code}: {said[-600:]}")


def waited(child: int, seconds: float) -> int | None:
    """Exit status of the child, or None if it has not ended in time."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    return None


def in_child(work: Path, commands: Commands, log: Path) -> None:
    """Run the commands in the child; never returns."""
    code = 70 if commands else 0
    try:
        os.setsid()
        os.chdir(work)
        os.environ["GROUPER_HOME"] = str(work.parent / "home")  # proofs are kept from case to case
        stream = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        damage_more.set_limits(work)
        import cli

        for arguments in commands:
            sys.argv = ["grouper", *arguments]
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code or 0
            if code:
                break
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


def small_model(folder: Path) -> Path:
    """Write a Llama of two layers with the bundled model's tokenizer, and a text next to it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from grouper.calibration.source import DATA
    from grouper.checkpoint.checkpoint import DEMO

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in DEMO.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    (folder.parent / TEXT).write_text((DATA / "addresses-1977-2016.txt").read_text()[:60_000])
    return folder


def imported() -> None:
    """Import everything that the commands need, so that children start at once."""
    from transformers import LlamaForCausalLM

    import cli  # noqa: F401
    import search
    from grouper.export.hf import write  # noqa: F401
    from grouper.uptraining import uptrain  # noqa: F401
    from search import demo, one_call  # noqa: F401

    _ = (search.search, search.evaluate, LlamaForCausalLM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=CLASSES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="cases of each class")
    parser.add_argument("--show", action="store_true", help="what each case said")
    args = parser.parse_args()
    imported()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        good = small_model(Path(place) / "good")
        reference = Path(place) / "reference"
        shutil.copytree(good, reference / "model")
        if attempt(reference, all_commands(reference)).kind != "clean":
            raise SystemExit((reference / "log").read_text())
        shutil.copytree(reference / "run", Path(place) / "finished")
        for name, (cases, many) in CLASSES.items():
            if args.only and name != args.only:
                continue
            count = args.count or (6 if args.quick else many)
            found = dict.fromkeys(("clean", "refused", "traceback", "hang", "harm"), 0)
            source = cases(random.Random(f"{name}{args.seed}"))
            for number in range(count):
                what, damage = next(source)
                work = Path(place) / f"{name}-{number}"
                shutil.copytree(good, work / "model")
                said = damage(work if cases in AROUND else work / "model")
                outcome = attempt(work, said if cases in AROUND else all_commands(work), joins=name == "pages")
                found[outcome.kind] += 1
                if args.show or outcome.kind not in ("clean", "refused"):
                    print(f"{name} {number}, {what}: {outcome.kind}. {outcome.said}", file=sys.stderr, flush=True)
                shutil.rmtree(work, ignore_errors=True)
            rows.append({"class": name, "cases": count, **found})
    report("faults", rows)
    if any(row[kind] for row in rows for kind in ("traceback", "hang", "harm")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
