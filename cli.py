"""The `grouper` command: parses, calls, prints; no logic of its own. Data on stdout, messages and progress on stderr."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

# What needs torch is imported where it is used: `grouper --help` answers at once.

app = typer.Typer(
    help="Give a Hugging Face LLM fewer KV heads: less KV cache, nearly the same text.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
say = Console(stderr=True, highlight=False)


def _from_config(context: typer.Context, path: Path | None) -> Path | None:
    """--config: the file's options become the command's defaults, so that what is typed wins."""
    if path is not None:
        from grouper.errors import GrouperError

        try:
            options = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise GrouperError(
                f"cannot read {path} ({type(error).__name__}): expected YAML with the command's options"
            ) from error
        if not isinstance(options, dict):
            raise GrouperError(f"{path} holds no options: expected lines like `seed: 1`")
        known = {p.name for p in context.command.params}
        options = {str(k).replace("-", "_"): v for k, v in options.items()}
        options = {f"{k}_" if k in ("json", "format") else k: v for k, v in options.items()}
        unknown = sorted(set(options) - known)
        if unknown:
            raise GrouperError(
                f"{path} has the option {unknown[0]!r}, which `grouper {context.command.name}` does not know"
            )
        joined = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in options.items()}
        context.default_map = {**(context.default_map or {}), **joined}
    return path


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
Text = Annotated[str | None, typer.Option(help="Plain text, JSONL with `text` or chat `messages`, or `demo`.")]
Dataset = Annotated[str | None, typer.Option(help="NAME[:split] of a dataset (needs kv-grouper[datasets]).")]
Tokens = Annotated[int, typer.Option(help="Tokens of text to calibrate on.")]
Window = Annotated[int, typer.Option(help="Tokens of a window.")]
Keep = Annotated[Path | None, typer.Option(help="Folder where what was calibrated is kept and looked for.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Scope = Annotated[
    str | None, typer.Option(help="What refinement trains: attention (default on a CPU) or block (on a GPU).")
]
RefineTokens = Annotated[
    int | None, typer.Option(help="Tokens to refine on: 393,216 on a GPU, 16,384 on a CPU, if there are as many.")
]


@app.command()
def inspect(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A folder, a Hub id, or `demo`.")] = None,
    families: Annotated[
        bool, typer.Option("--families", help="What can be regrouped at all, as a table in Markdown.")
    ] = False,
    revision: Revision = None,
    context: Annotated[int | None, typer.Option(help="Tokens of context to size the cache for.")] = None,
    kv_dtype: KvDtype = "bfloat16",
    json_: Json = False,
    config: Config = None,
):
    """Heads, KV bytes and what can be done, from configuration and headers alone."""
    if families:
        from grouper.model.family_table import family_table, markdown

        return _print_json([asdict(row) for row in family_table()]) if json_ else print(markdown(family_table()))
    if model is None:
        raise typer.BadParameter("give a MODEL, or --families")
    from grouper.model.checkpoint import Checkpoint
    from grouper.model.inspection import inspect as look
    from search.console import inspection

    found = look(Checkpoint.open(model, revision), kv_dtype, context)
    if json_:
        _print_json(asdict(found))
    else:
        inspection(found)


@app.command()
def search(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the run; the same command again goes on there.")
    ],
    method: Annotated[str, typer.Option(help="Ways to find groupings, separated by commas.")] = "qcqa-ac,qcqa-ec",
    fitness: Annotated[str, typer.Option(help="What a grouping costs.")] = "spectral",
    text: Text = None,
    dataset: Dataset = None,
    tokens: Tokens = 32_768,
    window: Window = 512,
    keep_calibration: Keep = None,
    paper: Annotated[str | None, typer.Option(help="A published recipe: qcqa or asymgqa.")] = None,
    acceptance: Annotated[
        str, typer.Option(help="What judges asymgqa's steps: fitness, or (slow) the merged model's loss.")
    ] = "fitness",
    stage2: Annotated[
        str, typer.Option(help="Budgets over layers: knapsack (exact), nsga2 (QCQA's) or none.")
    ] = "knapsack",
    kv_heads_multiple_of: Annotated[int, typer.Option(help="Only such KV-head counts, for tensor parallelism.")] = 1,
    kv_dtype: KvDtype = "bfloat16",
    population: Annotated[int, typer.Option(help="Of the genetic search.")] = 96,
    generations: Annotated[int, typer.Option(help="Of the genetic search, at most.")] = 60,
    seed: int = 0,
    jobs: Annotated[int, typer.Option(help="Layers searched at a time.")] = 1,
    device: Device = "auto",
    revision: Revision = None,
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
):
    """Find which heads can share: writes the Pareto front of KV bytes against error, resumable."""
    from search import SearchOptions
    from search import search as run_search
    from search.console import closing_table, search_progress

    options = SearchOptions(
        tuple(m.strip() for m in method.split(",")), fitness, stage2, paper, kv_heads_multiple_of, kv_dtype, population, generations, seed,
        text, dataset, tokens, window, acceptance,
    )  # fmt: skip
    with search_progress() as progress:
        front = run_search(
            model, output, options, revision=revision, jobs=jobs, device=_device(device), keep_calibration=keep_calibration, overwrite=overwrite,
            progress=progress, command=_command(),
        )  # fmt: skip
    closing_table(front, str(output))
    _print_front(front, json_, output)


@app.command()
def evaluate(
    run: Run,
    text: Text = None,
    dataset: Dataset = None,
    merge: Annotated[str | None, typer.Option(help="How heads become one; the run's own unless given.")] = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Refine each layout on the run's calibration text first.")
    ] = False,
    scope: Scope = None,
    refine_tokens: RefineTokens = None,
    keep_calibration: Keep = None,
    layouts: Annotated[
        str, typer.Option(help="spread (baselines, stock ones, 12 along the front), all, or 3,17,40.")
    ] = "spread",
    window: Window = 512,
    limit: Annotated[int | None, typer.Option(help="Windows at most, spread over the text.")] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, for computing.")] = "float32",
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
):
    """Measure nats per token of layouts on text, merging in memory; resumable."""
    from grouper.calibration.text import TextSource
    from search import evaluate as measure
    from search.console import bar, closing_table

    source = TextSource(text, dataset, purpose="evaluation")
    with bar("measuring") as progress:
        front = measure(
            run, source, merge=merge, refine=refine, scope=scope, refine_tokens=refine_tokens, layouts=layouts, window=window, limit=limit,
            device=_device(device), dtype=_dtype(dtype), keep_calibration=keep_calibration,
            overwrite=overwrite, progress=lambda done, of, what, value: progress(done, of, f"{what}: {value:.4f} nats per token"),
        )  # fmt: skip
    closing_table(front, str(run))
    _print_front(front, json_, run)


@app.command()
def export(
    run: Run,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model.")],
    layout: Annotated[int | None, typer.Option(help="The layout of this number in pareto.csv.")] = None,
    kv_ratio: Annotated[str | None, typer.Option(help="KV cache relative to the original's: 0.5 or 1/3.")] = None,
    kv_bytes_per_token: Annotated[int | None, typer.Option(help="The largest KV cache per token, in bytes.")] = None,
    deploy: Annotated[
        str | None, typer.Option(help="stock, padded, ragged or any; stock where the run has some.")
    ] = None,
    merge: Annotated[str | None, typer.Option(help="How heads become one; the run's own unless given.")] = None,
    text: Text = None,
    dataset: Dataset = None,
    refine: Annotated[bool, typer.Option(help="Refine layer by layer, where text is given.")] = True,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Push the folder to the Hub, too.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made, make it private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made if missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    commit_message: Annotated[str | None, typer.Option(help="Of the push.")] = None,
    format_: Annotated[
        str, typer.Option("--format", help="hf (a folder for transformers and vLLM) or gguf (llama.cpp).")
    ] = "hf",
    dtype: Annotated[
        str | None, typer.Option(help="Of a GGUF: float32, float16 or bfloat16; the model's own unless given.")
    ] = None,
    max_padding: Annotated[
        float, typer.Option(help="How much of its weights a padded export may add; beyond it, ragged.")
    ] = 0.10,
    scope: Scope = None,
    tokens: Tokens = 32_768,
    refine_tokens: RefineTokens = None,
    window: Window = 512,
    keep_calibration: Keep = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
    config: Config = None,
):
    """Write a regrouped model that transformers loads, and test it."""
    from grouper.calibration.text import TextSource
    from grouper.export.hub import Destination
    from grouper.regroup import Calibration
    from search import export_from_run
    from search.console import bar, exported_summary

    calibration = (
        Calibration(TextSource(text, dataset), tokens, refine_tokens, window, keep_calibration)
        if text or dataset
        else None
    )
    destination = Destination(push_to_hub, private, revision, create_pr, commit_message) if push_to_hub else None
    with bar("writing") as progress:
        exported = export_from_run(
            run, output, layout=layout, kv_ratio=kv_ratio, kv_bytes_per_token=kv_bytes_per_token, deploy=deploy, merge=merge,
            calibration=calibration, refine=refine, scope=scope, max_padding=max_padding, format=format_, dtype=dtype,
            device=_device(device), keep_calibration=keep_calibration, destination=destination, overwrite=overwrite,
            command=_command(), tell=lambda line: say.print(line, soft_wrap=True), progress=progress,
        )  # fmt: skip
    if json_:
        _print_json(asdict(exported))
    else:
        exported_summary(exported)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for what it makes.")] = Path("grouper-demo"),
):
    """The whole job on the model in the box, in about a minute: no download, no GPU."""
    from search.demo import demo as show

    show(output)


def _print_front(front, as_json: bool, folder: Path) -> None:
    if as_json:
        print(front.front().to_json(orient="records"))
    else:
        print(folder / "pareto.csv")


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _command() -> str:
    """What was typed, for the record."""
    return shlex.join(["grouper", *sys.argv[1:]])


def _device(name: str) -> str:
    import torch

    from grouper.errors import GrouperError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise GrouperError(f"device {name!r} is not usable here: expected auto, cpu or cuda") from error
    return name


def _dtype(name: str) -> str:
    if name not in ("float32", "bfloat16", "float16", "float64"):
        from grouper.errors import GrouperError

        raise GrouperError(f"unknown dtype {name!r}: expected float32, bfloat16, float16 or float64")
    return name


def main() -> None:
    """Exit 0, 1 (failed, one line why) or 2 (usage)."""
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)  # libraries' own bars and notes would bury ours
    try:
        app()
    except KeyboardInterrupt:
        print("grouper: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        from grouper.errors import GrouperError

        if not isinstance(error, GrouperError | OSError):
            raise
        print(f"grouper: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
