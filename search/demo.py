"""`grouper demo`: all steps on the bundled model, with settings small enough for two cores to finish within 90
seconds."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer, windows
from grouper.checkpoint.checkpoint import DEMO, Checkpoint
from grouper.errors import GrouperError
from grouper.evaluation.perplexity import nll
from grouper.families.inspection import inspect
from grouper.machine import Machine
from grouper.model.loading import load
from grouper.outputs import bears, refuse_inside
from grouper.refinement.options import RefineOptions
from grouper.writable import refuse_unwritable
from search.commands.bars import bar
from search.commands.console import ERR, OUT, closing_table, exported_summary, inspection
from search.evaluation.layouts import evaluate
from search.export_run import export_from_run
from search.options import DEMO_FOLDER, SearchOptions
from search.run import search
from search.runs.pareto import ParetoFront
from search.runs.picking import Selection

MARKER, MADE_BY = "README.txt", "Made by `grouper demo`"
RATIOS = (0.5, 0.25)
LIMIT = 8  # windows of the evaluation text
EVALUATION = TextSource("demo", purpose="evaluation")
PROMPT = "My fellow citizens, the state of the Union is"
YOURS = """\
The same on a model of your own (a folder, or USER/NAME on the Hub), with text like what it will serve:

  grouper regroup MODEL -o half --kv-ratio 1/2 --text calibration.txt --evaluation other.txt

or step by step:

  grouper inspect  MODEL
  grouper search   MODEL -o run --text calibration.txt
  grouper evaluate run --text other.txt
  grouper export   run -o regrouped --kv-ratio 1/2 --text calibration.txt
"""
WHY_MORE = """\
README's +0.009 was refined on all 393,216 tokens of this text, on a GPU. The demo takes 3,072 to be short; with 16,384,
what a CPU takes by default, +0.023 are left (docs/results.md)."""


def run_demo(folder: Path = DEMO_FOLDER) -> None:
    """Inspect, search, measure, refine, export, self-test and generate a sample. `folder` is created; an earlier demo
    in it is replaced."""
    began = time.perf_counter()
    refuse_unwritable(folder)
    if folder.is_symlink() or (folder.exists() and not is_demo(folder)):
        raise GrouperError(f"{folder} exists and is not an earlier demo's: move it away, or run the demo elsewhere")
    refuse_inside(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(f"{MADE_BY}; made anew by the next one.\n\n{YOURS}")
    run, regrouped = folder / "run", folder / "regrouped"

    _title("1. What is there: a 7M-parameter Llama that writes English, every query head with a KV head of its own")
    inspection(inspect(Checkpoint.open("demo")))
    _title("2. Which heads can share one: search, calibrated on addresses of 1977-2016")
    with bar("searching") as progress:
        options = SearchOptions(text="demo", tokens=8192, generations=20, population=48)
        front = search("demo", run, options, machine=Machine(progress=progress))
    _title("3. What it costs, on addresses since 2017: nats per token, beside what everybody does without a search")
    closing_table(_measured(run, front), str(run))
    _title("4. Half the KV cache, refined layer by layer and written as a plain Llama")
    calibration, refine = Calibration(TextSource("demo"), tokens=8192, window=256), RefineOptions(tokens=3072)
    with bar("refining") as progress:
        half = Selection(kv_ratio="1/2")
        exported = export_from_run(
            run, regrouped, half, calibration, refine, machine=Machine(tell=ERR.print, progress=progress)
        )
    exported_summary(exported)
    _title("5. Does it still write?")
    _samples(regrouped)
    seconds = time.perf_counter() - began
    _title(f"Done in {seconds:.0f} s. The picture is {run}/pareto.svg, the table {run}/pareto.csv")
    OUT.print(YOURS, soft_wrap=True)


def is_demo(folder: Path) -> bool:
    """Whether an earlier demo made this folder."""
    return (folder / MARKER).is_file() and bears(folder / MARKER, MADE_BY.encode())


def _measured(run: Path, front: ParetoFront) -> ParetoFront:
    """Measure the original and, at half and a quarter of the cache, the best equal groups, the best ragged layout, and
    averaged neighbours."""
    table = front.table
    stock = table[(table["deploy"] == "stock") & (table["method"] != "random") & table["kv_ratio"].isin(RATIOS)]
    found, neighbours = stock[stock["method"] != "neighbour"], stock[stock["method"] == "neighbour"]
    ragged = table[table["deploy"] == "ragged"].sort_values("error")
    budgets = [ragged[ragged["kv_ratio"] == ratio]["layout"].iloc[0] for ratio in RATIOS]
    with bar("measuring") as progress:
        machine = Machine(progress=progress)
        for layouts, merge in (([0, *found["layout"], *budgets], None), (neighbours["layout"], "mean")):
            numbers = ",".join(map(str, layouts))
            front = evaluate(run, EVALUATION, merge=merge, layouts=numbers, limit=LIMIT, machine=machine)
    return front


def _samples(regrouped: Path) -> None:
    """Print the continuation of the prompt and the loss, for the original and the regrouped model."""
    tokenizer = load_tokenizer(Checkpoint.open("demo"))
    tokens = windows(EVALUATION, tokenizer, 512, LIMIT)
    losses = {}
    for name, path in (("original", DEMO), ("regrouped", regrouped)):
        losses[name], sample = _sample(path, tokenizer, tokens)
        OUT.print(f"{name:>9}, {losses[name]:.4f} nats per token: {sample}", soft_wrap=True)
    over = losses["regrouped"] - losses["original"]
    OUT.print(f"refined at half the KV cache: {over:+.4f} nats per token over the original")
    OUT.print(WHY_MORE, soft_wrap=True)


def _title(text: str) -> None:
    OUT.print(f"\n{text}\n", style="bold", soft_wrap=True)


def _sample(path: Path, tokenizer: Any, tokens: torch.Tensor) -> tuple[float, str]:
    """Nats per token, and the model's greedy continuation of the prompt, without repeated trigrams."""
    model = load("AutoModelForCausalLM", path, dtype=torch.float32).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        written = model.generate(**prompt, max_new_tokens=40, do_sample=False, no_repeat_ngram_size=3, pad_token_id=0)
    return nll(model, tokens), " ".join(tokenizer.decode(written[0]).split())
