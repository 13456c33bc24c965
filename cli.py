"""The `grouper` command: parses, calls, prints. Data on stdout, messages and progress on stderr."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from grouper.errors import GrouperError, is_disk_full, is_memory_short
from grouper.export.options import ExportOptions
from grouper.names import expected, printable, shortened, without_secrets
from grouper.ranks import FirstFailed
from grouper.uptraining.options import UptrainOptions
from search.commands.choices import CHOICES, choices_of, completing, listed
from search.commands.config_file import read_options
from search.commands.console import Terminal
from search.commands.limits import usable_device, within_limits
from search.commands.notes import print_notes
from search.options import COMPUTING, DEMO_FOLDER, MEASURED, SearchOptions
from search.stopping import Stopped, stop_on_signals

if TYPE_CHECKING:
    from search.runs.pareto import ParetoFront

WITHOUT_TEXT = (
    "searched without text: what enters attention was guessed from the norms' weights. On a real model that costs much "
    "(SmolLM2-135M, docs/results.md: +4.79 nats per token instead of +0.56): search again with --text FILE, of text "
    "like what it will serve, or --text wikitext (needs kv-grouper[datasets])."
)
# What needs torch is imported where it is used: `grouper --help` answers at once.

SEARCH, EXPORT, UPTRAIN = SearchOptions(), ExportOptions(), UptrainOptions()  # whose defaults are the command's

app = typer.Typer(
    help="Give a Hugging Face LLM fewer KV heads: less KV cache, nearly the same text.",
    epilog="With any command: --quiet says nothing but errors and results, --verbose what libraries log, --debug the "
    "whole traceback of a failure.",
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown",
)  # fmt: skip
say = Terminal(stderr=True)


def _from_config(context: typer.Context, path: Path | None) -> Path | None:
    """--config: the file's options become the command's defaults, so that what is typed wins."""
    if path is not None:
        parameters = context.command.params
        several = {p.name for p in parameters if p.multiple}
        options = read_options(path, str(context.command.name), {p.name for p in parameters}, several)
        context.default_map = {**(context.default_map or {}), **options}
    return path


PANELS = {  # what options are about, as --help shows them
    "What": "families revision merge layout layouts kv_ratio kv_bytes_per_token deploy method fitness base",
    "Text": "text dataset images tokens window limit keep_calibration tasks num_fewshot task_path",
    "Search": "blocks paper acceptance stage2 kv_heads_multiple_of kv_dtype population generations sensitivity seed "
    "set_ sort",
    "Refinement and training": "refine scope refine_tokens long_share teacher kl hidden causal step_tokens "
    "micro_tokens lr train lora_rank patience checkpointing",
    "Output": "output overwrite json_ config format_ dtype max_padding push_to_hub private create_pr commit_message "
    "tracker best_under every similar dark",
    "Machine": "jobs device memory teacher_device teacher_dtype context batch card",
}


def in_panels(command: Callable) -> Callable:
    """The command, its options in the groups that PANELS says, with the words that they take."""
    panel_of = {name: panel for panel, names in PANELS.items() for name in names.split()}
    for name, hint in get_type_hints(command, include_extras=True).items():
        for info in getattr(hint, "__metadata__", ()):
            if hasattr(info, "rich_help_panel") and name in panel_of:
                info.rich_help_panel = panel_of[name]
                if hint.__origin__ in (int, int | None):
                    info.callback = within_limits
                if key := choices_of(command.__name__, name):
                    info.autocompletion = completing(key)
                    if not all(choice in info.help for choice in CHOICES[key]):
                        info.help = f"{info.help} One of {listed(key)}."
    return command


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a Hub id, or `demo`, the model that comes with Grouper.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `grouper search` wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
KvDtype = Annotated[str, typer.Option(help="What the KV cache is kept in: bfloat16, float16, float32, float8, int8.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", callback=_from_config, is_eager=True, help="YAML file with any options of this command."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.FIELD=VALUE", help="A parameter of a method, fitness or merge."),
]
Text = Annotated[
    str | None,
    typer.Option(
        help="Plain text, JSONL with `text` or chat `messages`; demo, wikitext or ultrachat. With an encoder: see docs."
    ),
]
Images = Annotated[
    str | None, typer.Option(help="Pictures in folders of classes, FOLDER/CLASS/*.png, for models that look at them.")
]
Dataset = Annotated[
    str | None, typer.Option(help="NAME[:split] or NAME:config:split of a dataset (needs kv-grouper[datasets]).")
]
Tokens = Annotated[int, typer.Option(help="Tokens of text to calibrate on.")]
Window = Annotated[int, typer.Option(help="Tokens of a window.")]
Seed = Annotated[int, typer.Option(help="Of all chance.")]
Merge = Annotated[str | None, typer.Option(help="How heads become one; the run's own unless given.")]
Keep = Annotated[Path | None, typer.Option(help="Folder where what was calibrated is kept and looked for.")]
Memory = Annotated[
    str | None, typer.Option(help="What a model may take, like 8GB; a larger one is streamed. Half of what is free.")
]
Device = Annotated[str, typer.Option(callback=usable_device, help="auto, cpu or cuda.")]
Scope = Annotated[
    str | None, typer.Option(help="What refinement trains: attention (default on a CPU) or block (on a GPU).")
]
RefineTokens = Annotated[
    int | None, typer.Option(help="Tokens to refine on: 393,216 on a GPU, 16,384 on a CPU, if there are as many.")
]
LongShare = Annotated[
    float | None,
    typer.Option(help="Share of these in windows as long as a step or the model's context; half of them by default."),
]


@app.command()
@in_panels
def inspect(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A folder, a Hub id, or `demo`.")] = None,
    families: Annotated[
        bool, typer.Option("--families", help="What can be regrouped at all, as a table in Markdown.")
    ] = False,
    revision: Revision = None,
    context: Annotated[int | None, typer.Option(help="Tokens of context to size the cache for.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences to size the cache for.")] = 1,
    card: Annotated[str | None, typer.Option(help="Memory of a card, like 80GB: how many sequences fit?")] = None,
    kv_dtype: KvDtype = SEARCH.kv_dtype,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Heads, KV bytes and what can be done, from configuration and headers alone."""
    if families:
        from fitness import FITNESSES
        from grouper.model.family_table import family_rows, markdown

        rows = family_rows(FITNESSES)

        return _print_json([asdict(row) for row in rows]) if json_ else print(markdown(rows))
    if model is None:
        raise typer.BadParameter("give a MODEL, or --families")
    from grouper.model.checkpoint import Checkpoint
    from grouper.model.inspection import inspect as look
    from grouper.model.memory import parsed_bytes
    from search.commands.console import inspection

    memory = None if card is None else parsed_bytes(card, "--card")
    found = look(Checkpoint.open(model, revision), kv_dtype, context, batch, memory)
    if json_:
        return _print_json(found.to_data())
    inspection(found)
    given = {"pictures": ("--images", "pictures"), "pairs": ("--text", "pairs.tsv"), "sounds": ("--text", "sounds.tsv")}
    _next("search", model, "-o", "run", *given.get(found.reads, ("--text", "calibration.txt")))


@app.command()
@in_panels
def search(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the run; the same command goes on there.")],
    method: Annotated[
        str,
        typer.Option(help="Ways to find groupings, several with commas; qcqa-ec joins where none finds equal groups."),
    ] = ",".join(SEARCH.method),
    fitness: Annotated[str, typer.Option(help="What a grouping costs.")] = SEARCH.fitness,
    text: Text = None,
    dataset: Dataset = None,
    tokens: Tokens = SEARCH.tokens,
    window: Window = SEARCH.window,
    images: Images = None,
    blocks: Annotated[
        str,
        typer.Option(help="With an encoder: cached (what a KV cache is of), all, encoder, decoder, across."),
    ] = SEARCH.blocks,
    keep_calibration: Keep = None,
    paper: Annotated[str | None, typer.Option(help="A published recipe: qcqa or asymgqa.")] = None,
    acceptance: Annotated[
        str, typer.Option(help="What judges asymgqa's steps: fitness, or (slow) loss.")
    ] = SEARCH.acceptance,
    stage2: Annotated[str, typer.Option(help="Budgets over layers: knapsack, nsga2 (QCQA's) or none.")] = SEARCH.stage2,
    kv_heads_multiple_of: Annotated[
        int, typer.Option(help="Only such KV-head counts, for tensor parallelism.")
    ] = SEARCH.kv_heads_multiple_of,
    kv_dtype: KvDtype = SEARCH.kv_dtype,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Budgets add what each layer costs alone, measured on held-out text.")
    ] = SEARCH.sensitivity,
    population: Annotated[int, typer.Option(help="Of the genetic search.")] = SEARCH.population,
    generations: Annotated[int, typer.Option(help="Of the genetic search, at most.")] = SEARCH.generations,
    set_: Assignments = None,
    seed: Seed = SEARCH.seed,
    jobs: Annotated[str, typer.Option(help="Layers searched at a time; auto: what cores and memory hold.")] = "auto",
    device: Device = "auto",
    memory: Memory = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Find which heads can share: writes the Pareto front of KV bytes against error, resumable."""
    from search import search as run_search
    from search.commands.bars import bar
    from search.commands.console import closing_table

    options = SearchOptions(
        method=tuple(m.strip() for m in method.split(",")), fitness=fitness, stage2=stage2, paper=paper,
        kv_heads_multiple_of=kv_heads_multiple_of, kv_dtype=kv_dtype, population=population, generations=generations,
        seed=seed, text=text, dataset=dataset, tokens=tokens, window=window, acceptance=acceptance,
        set=tuple(set_ or ()), sensitivity=sensitivity, images=images, blocks=blocks,
    )  # fmt: skip
    with bar("searching", says_how_long=True) as progress:
        front = run_search(
            model, output, options, revision=revision, jobs=jobs, device=_device(device), memory=_bytes(memory),
            keep_calibration=keep_calibration, overwrite=overwrite, progress=progress, command=_command(),
        )  # fmt: skip
    closing_table(front, str(output))
    if not text and not dataset and not images and fitness != "weight":
        say.print(WITHOUT_TEXT, soft_wrap=True)
    _next("evaluate", output, *(("--images", "others") if images else ("--text", "other.txt")))
    _print_front(front, json_, output)


@app.command()
@in_panels
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, an exported or healed folder, or a model.")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Plain text, JSONL with `text` or chat `messages`, or `demo`; NAME=FILE for each of several."
        ),
    ] = None,
    dataset: Dataset = None,
    images: Images = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, like hellaswag,piqa (needs kv-grouper[eval]).")
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples in a task's context; its own unless given.")] = None,
    task_path: Annotated[Path | None, typer.Option(help="Folder of further tasks, as YAML.")] = None,
    merge: Merge = None,
    refine: Annotated[bool, typer.Option("--refine", help="Refine each layout on the run's calibration text.")] = False,
    scope: Scope = None,
    refine_tokens: RefineTokens = None,
    long_share: LongShare = None,
    keep_calibration: Keep = None,
    layouts: Annotated[
        str, typer.Option(help="spread (baselines, stock, 12 along the front), all, or 3,17.")
    ] = MEASURED,
    set_: Assignments = None,
    base: Annotated[str | None, typer.Option(help="An exported folder's original, if it is not found.")] = None,
    window: Window = SEARCH.window,
    limit: Annotated[int | None, typer.Option(help="Windows of text, and items of each task, at most.")] = None,
    device: Device = "auto",
    memory: Memory = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, for computing.")] = COMPUTING,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Measure what layouts or models lose, on text and by tasks, merging in memory; resumable."""
    from grouper.calibration.source import named_sources
    from grouper.evaluation.tasks import TaskOptions
    from grouper.refinement.options import RefineOptions
    from search import RunFolder
    from search import evaluate as measure
    from search.commands.bars import bar
    from search.commands.console import closing_table
    from search.commands.measured_tables import evaluated_table, positions_table, proxies_table, tasks_table
    from search.evaluation.models import evaluate_model, names_a_model
    from search.evaluation.proxies import read_proxies
    from search.runs.picking import ratio_column, representative
    from search.runs.record import refining_options

    source = named_sources(text or [], dataset, "evaluation", images) if text or dataset or images else None
    asked = None
    if tasks is not None:
        asked = TaskOptions(tuple(t.strip() for t in tasks.split(",")), task_path, limit, num_fewshot)
    where, most = _device(device), _bytes(memory)
    if names_a_model(run):
        given = {
            "--merge": merge, "--refine": refine, "--scope": scope, "--refine-tokens": refine_tokens,
            "--long-share": long_share is not None, "--set": set_,
            "--keep-calibration": keep_calibration, "--layouts": layouts != MEASURED, "--overwrite": overwrite,
            "--dtype": dtype != COMPUTING,
        }  # fmt: skip
        if strange := [name for name, value in given.items() if value]:
            raise GrouperError(f"{run} is a model, and {strange[0]} is for runs: leave it away")
        with bar("measuring"):
            found = evaluate_model(
                run, source, tasks=asked, base=base, window=window, limit=limit, device=where, memory=most
            )
        return _print_json(found.to_data()) if json_ else evaluated_table(found)
    if base:
        raise GrouperError(f"{run} is a run, and --base is for exported folders: leave it away")
    seed = RunFolder.open(Path(run)).settings.options.seed
    options = RefineOptions(scope, seed=seed, tokens=refine_tokens, long_share=long_share) if refine else None
    with bar("measuring", says_how_long=True) as progress:
        front = measure(
            run, source, tasks=asked, merge=merge, refine=options, layouts=layouts, window=window, limit=limit,
            device=where, dtype=_dtype(dtype), memory=most, keep_calibration=keep_calibration,
            set=tuple(set_ or ()), overwrite=overwrite, progress=progress,
        )  # fmt: skip
    closing_table(front, str(run))
    positions_table(front)
    tasks_table(front)
    proxies_table(read_proxies(run))
    half = representative(front)
    budget = ("--kv-ratio", "1/2") if half[ratio_column(front)] <= 0.5 else ("--layout", half["layout"])
    _next("export", run, "-o", "regrouped", *budget, *refining_options(RunFolder.open(Path(run))))
    _print_front(front, json_, Path(run))


@app.command()
@in_panels
def export(
    run: Run,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model.")],
    layout: Annotated[int | None, typer.Option(help="The layout of this number in pareto.csv.")] = None,
    kv_ratio: Annotated[
        str | None, typer.Option(help="Largest KV cache, relative to the original's: 0.5, 1/3 or 50%.")
    ] = None,
    kv_bytes_per_token: Annotated[int | None, typer.Option(help="The largest KV cache per token, in bytes.")] = None,
    deploy: Annotated[str | None, typer.Option(help="stock, padded, ragged or any; stock where one fits.")] = None,
    merge: Merge = None,
    set_: Assignments = None,
    text: Text = None,
    dataset: Dataset = None,
    images: Images = None,
    refine: Annotated[bool, typer.Option(help="Refine layer by layer, on --text or the run's own text.")] = True,
    push_to_hub: Annotated[str | None, typer.Option(metavar="USER/NAME", help="Push the folder to the Hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made, make it private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made if missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    commit_message: Annotated[str | None, typer.Option(help="Of the push.")] = None,
    format_: Annotated[
        str, typer.Option("--format", help="hf (for transformers and vLLM) or gguf (llama.cpp).")
    ] = EXPORT.format,
    dtype: Annotated[str | None, typer.Option(help="Of a GGUF: float32, float16, bfloat16; else the model's.")] = None,
    max_padding: Annotated[
        str, typer.Option(help="Weights that a padded export may add; beyond it, ragged.")
    ] = f"{EXPORT.max_padding:.0%}",
    scope: Scope = None,
    tokens: Tokens = SEARCH.tokens,
    refine_tokens: RefineTokens = None,
    long_share: LongShare = None,
    window: Window = SEARCH.window,
    keep_calibration: Keep = None,
    device: Device = "auto",
    memory: Memory = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Write a regrouped model that transformers loads, and test it."""
    from grouper.calibration.calibration import Calibration
    from grouper.calibration.source import TextSource
    from grouper.export.hub import Destination
    from grouper.refinement.options import RefineOptions
    from search import Selection, export_from_run
    from search.commands.bars import bar
    from search.commands.console import exported_summary
    from search.evaluation.models import can_be_measured
    from search.runs.folder import RunFolder
    from search.runs.shares import parsed_share

    calibration = None
    if text or dataset or images:
        calibration = Calibration(TextSource(text, dataset, images=images), tokens, window, keep_calibration)
    padding = parsed_share(max_padding, "--max-padding")
    destination = None
    if push_to_hub:
        destination = Destination(push_to_hub, private, revision, create_pr, commit_message)
    with bar("writing") as progress:
        exported = export_from_run(
            run, output, Selection(layout, kv_ratio, kv_bytes_per_token, deploy, merge), calibration,
            RefineOptions(scope, tokens=refine_tokens, long_share=long_share) if refine else None,
            ExportOptions(format=format_, dtype=dtype, max_padding=padding, overwrite=overwrite), destination,
            device=_device(device), memory=_bytes(memory), keep_calibration=keep_calibration,
            set=tuple(set_ or ()), command=_command(),
            tell=lambda line: say.print(printable(line), soft_wrap=True), progress=progress,
        )  # fmt: skip
    if json_:
        _print_json(exported.to_data())
    else:
        exported_summary(exported)
        if can_be_measured(output):
            pictures = images or RunFolder.open(Path(run)).settings.options.images
            _next("evaluate", output, *(("--images", "others") if pictures else ("--text", "other.txt")))
            learnt = ("--images", "training") if pictures else ("--text", "training.txt")
            _next("uptrain", output, "-o", f"{output}-healed", *learnt)
    if exported.not_refined:
        say.print(printable(f"not refined: {exported.not_refined}"), soft_wrap=True)


@app.command()
@in_panels
def check(
    exported: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `grouper export` or `uptrain` wrote.")],
    base: Annotated[str | None, typer.Option(help="The original, if it is not found.")] = None,
    json_: Json = False,
) -> None:
    """Repeat the self-test of an exported folder, after a download or an upgrade."""
    from grouper.export.check import check_folder
    from search.commands.bars import bar

    with bar("checking"):
        found = check_folder(exported, base)
    if json_:
        return _print_json(asdict(found))
    print(f"self-test passed: {printable(found.summary)}")


@app.command()
@in_panels
def uptrain(
    exported: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `grouper export` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the healed model, of the same class.")],
    text: Text = None,
    dataset: Dataset = None,
    images: Images = None,
    method: Annotated[
        str, typer.Option(help="distill, or as published: gqa, wgqa, wgqa-column, wgqa-row, dgqa, dgqa-diff, pgqa.")
    ] = UPTRAIN.method,
    teacher: Annotated[str | None, typer.Option(help="Whom to learn from; the original unless given.")] = None,
    base: Annotated[str | None, typer.Option(help="The original, where grouper.json does not lead to it.")] = None,
    teacher_device: Annotated[
        str | None, typer.Option(callback=usable_device, help="Where the teacher is; where the model is.")
    ] = None,
    teacher_dtype: Annotated[str | None, typer.Option(help="Of the teacher; bfloat16 on a GPU, else float32.")] = None,
    kl: Annotated[float | None, typer.Option(help="Weight of KL to the teacher's distribution.")] = None,
    hidden: Annotated[float | None, typer.Option(help="Weight of the cosine distance of hidden states.")] = None,
    causal: Annotated[float | None, typer.Option(help="Weight of the text's own next tokens.")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="To train on in all; 5.5M on a GPU, 262,144 on a CPU, 12 passes at most.")
    ] = None,
    step_tokens: Annotated[int | None, typer.Option(help="Of a step; 8,192 on a GPU, 2,048 on a CPU.")] = None,
    micro_tokens: Annotated[int | None, typer.Option(help="Of a pass, where a step does not fit at once.")] = None,
    window: Window = UPTRAIN.window,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; short trainings find it unless given.")
    ] = None,
    train: Annotated[str, typer.Option(help="full weights, or lora (needs kv-grouper[lora]).")] = UPTRAIN.train,
    lora_rank: Annotated[int, typer.Option(help="Of the adapters.")] = UPTRAIN.lora_rank,
    patience: Annotated[
        int, typer.Option(help="Validations without a better one before it stops; 0: never.")
    ] = UPTRAIN.patience,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, a third more time.")] = False,
    tracker: Annotated[str | None, typer.Option(help="Log to tensorboard, wandb or trackio, too.")] = None,
    set_: Assignments = None,
    seed: Seed = UPTRAIN.seed,
    device: Device = "auto",
    memory: Memory = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Heal an exported model by training: it learns from its original; resumable."""
    from grouper.calibration.source import TextSource
    from grouper.uptraining.methods import METHODS
    from grouper.uptraining.uptrain import uptrain_model
    from search.commands.bars import bar
    from search.commands.console import exported_summary

    given = {"kl": kl, "hidden": hidden, "causal": causal}
    losses = replace(METHODS.named(method).losses, **{n: w for n, w in given.items() if w is not None})
    options = UptrainOptions(
        method=method, tokens=tokens, step_tokens=step_tokens, micro_tokens=micro_tokens, window=window, lr=lr,
        losses=losses, train=train, lora_rank=lora_rank, patience=patience, checkpointing=checkpointing, seed=seed,
        tracker=tracker, set=tuple(set_ or ()),
    )  # fmt: skip
    with bar("training") as progress:
        done = uptrain_model(
            exported, output, TextSource(text, dataset, images=images), options, base=base, teacher=teacher,
            teacher_device=teacher_device, teacher_dtype=teacher_dtype and _dtype(teacher_dtype),
            device=_device(device), memory=_bytes(memory), overwrite=overwrite, command=_command(),
            tell=lambda line: say.print(printable(line), soft_wrap=True), progress=progress,
        )  # fmt: skip
    if json_:
        return _print_json(done.to_data())
    exported_summary(done)
    _next("evaluate", output, *(("--images", "others") if images else ("--text", "other.txt")))


@app.command()
@in_panels
def layouts(
    run: Run,
    sort: Annotated[str, typer.Option(help="A column of pareto.csv, or over; -COLUMN falls.")] = "-kv_ratio",
    deploy: Annotated[str | None, typer.Option(help="Only those that go out as stock, padded or ragged.")] = None,
    best_under: Annotated[
        str | None, typer.Option(metavar="RATIO", help="Only the layout that an export of this KV ratio takes.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All rows, not the front alone.")] = False,
    json_: Json = False,
) -> None:
    """A run's front as a table: sizes, errors, what was measured."""
    from search import RunFolder
    from search.commands.console import layouts_table
    from search.commands.layouts_table import View, viewed

    tell = lambda line: say.print(printable(line), soft_wrap=True)  # noqa: E731
    rows = viewed(RunFolder.open(run).front(), View(sort, deploy, best_under, every), tell)
    if json_:
        print(rows.to_json(orient="records"))
    else:
        layouts_table(rows)


@app.command()
@in_panels
def report(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="RUN/report.html unless given; a folder with --format.")
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Single pictures instead of the page: png, svg, pdf, or several.")
    ] = None,
    layout: Annotated[int | None, typer.Option(help="Layout that pictures show; an export's at half.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Pictures on a dark ground.")] = False,
    similar: Annotated[bool, typer.Option(help="Compare heads, for which the model's weights are read.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", hidden=True)
    ] = False,  # an earlier report is replaced anyway
) -> None:
    """A run as one page to look at, that needs no network; or its pictures, for papers."""
    from search import RunFolder
    from search.commands.bars import bar
    from search.report import write_pictures, write_report
    from search.report.facts import facts_of
    from search.report.page import check_page
    from search.report.pictures import check_pictures, parsed_formats
    from search.runs.picking import representative

    folder = RunFolder.open(run)
    output = output or run / ("pictures" if format_ else "report.html")
    formats = parsed_formats(format_) if format_ else ()
    if not formats and (layout is not None or dark):
        raise GrouperError("--layout and --dark are for pictures: give --format, too")
    if layout is not None:
        folder.layout(layout)
    if formats:
        check_pictures(output, formats, dark, folder.settings.model_folder)
    else:
        check_page(output, folder.settings.model_folder)
    with bar("comparing heads", says_how_long=True) as progress:
        facts = facts_of(folder, similar, progress)
    if facts.missing:
        say.print(printable(facts.missing), soft_wrap=True)
    if formats:
        shown = int(representative(facts.front)["layout"]) if layout is None else layout
        written = write_pictures(facts, output, formats, shown, dark)
    else:
        write_report(facts, output)
        written = [output]
    for path in written:
        print(printable(str(path)))


@app.command()
@in_panels
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `grouper search` wrote.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A picture of all: .svg, .png or .pdf.")] = None,
    json_: Json = False,
) -> None:
    """Several runs side by side: hypervolume, losses at equal cache, cache saved at equal loss."""
    from search.commands.comparison import check_picture, draw, to_data
    from search.commands.comparison import compare as compared_runs
    from search.commands.console import comparison_table

    names: list[str | Path] = [str(run) for run in runs]
    if output is not None:
        check_picture(output, names)
    found, points = compared_runs(names)
    if output is not None:
        draw(found, points, output)
    if json_:
        _print_json(to_data(found))
    else:
        comparison_table(found)


@app.command()
@in_panels
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for what it makes.")] = DEMO_FOLDER,
) -> None:
    """The whole job on the model in the box, in about a minute: no download, no GPU."""
    from search.commands.demo import run_demo

    run_demo(output)


def _next(*words: object) -> None:
    """The command that follows, with this one's values filled in."""
    say.print(printable(f"next: {shlex.join(['grouper', *map(str, words)])}"), soft_wrap=True)


def _print_front(front: "ParetoFront", as_json: bool, folder: Path) -> None:
    if as_json:
        print(front.front().to_json(orient="records"))
    else:
        print(printable(str(folder / "pareto.csv")))


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _command() -> str:
    """What was typed, for the record, less secrets."""
    return without_secrets(shlex.join(["grouper", *sys.argv[1:]]))


def _device(name: str) -> str:
    import torch

    from grouper.ranks import own_gpu

    return name if name != "auto" else own_gpu() if torch.cuda.is_available() else "cpu"


def _bytes(memory: str | None) -> int | None:
    from grouper.model.memory import parsed_bytes

    return None if memory is None else parsed_bytes(memory, "--memory")


def _dtype(name: str) -> str:
    known = ("float32", "bfloat16", "float16", "float64")
    if name not in known:
        raise GrouperError(f"unknown dtype {name!r}: {expected(name, known)}")
    return name


def main() -> None:
    """Exit 0, 1 (failed, one line why), 2 (usage), 130 or 143 (stopped by a signal)."""
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # libraries' own bars and notes would bury ours
    }.items():
        os.environ.setdefault(name, value)
    debug = "--debug" in sys.argv
    if {"--quiet", "-q"} & set(sys.argv):
        say.quiet, os.environ["GROUPER_QUIET"] = True, "1"  # for consoles that are made later
    if "--verbose" in sys.argv:
        logging.basicConfig(level=logging.INFO)
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
    sys.argv = [a for a in sys.argv if a not in ("--debug", "--quiet", "-q", "--verbose")]
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks, the others when they fail
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    print_notes(say)
    stop_on_signals()
    try:
        if strange := [a for a in sys.argv if a != a.encode(errors="replace").decode()]:
            raise GrouperError(f"{strange[0]!r} is not UTF-8: rename it")
        if strange := [
            a for a in sys.argv if a.startswith("-") and a.partition("=")[0] != printable(a.partition("=")[0])
        ]:
            raise GrouperError(f"no option {strange[0].partition('=')[0]!r}: see --help")
        app()
    except Stopped as stop:
        _fail("stopped; the same command goes on from here", stop.code)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from here", 130)
    except FirstFailed:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _fail(_said(error))


def _said(error: Exception) -> str:
    """What failed, and what to do."""
    if is_disk_full(error):
        return f"{error}: the disk is full, or a limit is reached; make room, and the same command goes on"
    if isinstance(error, GrouperError | OSError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's own, which is not imported here
        return "the GPU's memory is short: give fewer --jobs, or --device cpu"
    if is_memory_short(error):
        return "memory is short: give --memory an amount that is there, or fewer --jobs"
    last = (str(error).strip().splitlines() or ["no message"])[-1]
    return f"internal error: {type(error).__name__}, {last}; run again with --debug for the traceback, please report"


def _fail(why: str, code: int = 1) -> None:
    """Say why in one line, and exit."""
    rank = os.environ.get("RANK", "0")
    line = shortened(printable(without_secrets(" ".join(why.split()))))
    who = "grouper" if rank == "0" else f"grouper, rank {rank}"
    print(f"{who}: {line}", file=sys.stderr if rank == "0" else sys.__stderr__, flush=True)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os._exit(code)  # leaving their group in order would wait for ranks that wait for this one
    sys.exit(code)


if __name__ == "__main__":
    main()
