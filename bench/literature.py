"""Protocols that papers on smaller KV caches share, on any model, with their published figures beside it.

    python bench/fetch_real_models.py
    M=.real-models; MODELS="$M/Qwen2.5-Coder-0.5B-Instruct half healed"
    python bench/literature.py $MODELS --protocol wikitext2 --text $M/wikipedia-evaluation.txt --device cuda \\
        --json wikitext2.json
    python bench/literature.py $MODELS --protocol six-tasks --text $M/tasks --device cuda --json six-tasks.json
    python bench/literature.py $MODELS --protocol ruler --device cuda --json ruler.json
    python bench/literature.py $MODELS --protocol c4 --device cuda                          # fetches C4 from the Hub
    python bench/literature.py $MODELS --protocol longbench --text LongBench --device cuda
    python bench/literature.py --tables wikitext2.json six-tasks.json ruler.json            # prints the tables again

Models are folders or Hub ids: an original, what `grouper regroup` wrote from it, and what `grouper uptrain` wrote. Each
runs as transformers loads it; a ragged export needs its original beside it, or at its last known place.

wikitext2: perplexity; lines joined by blank lines, the whole test set in windows of 2,048 tokens. Without --text the
    test set comes from the Hub.
c4: perplexity; 1,100 documents of the first validation shard joined by spaces, 256 windows of 2,048 tokens. Without
    --text the shard comes from the Hub.
six-tasks: zero-shot accuracy (bench/six_tasks.py). --text: a folder of TASK.jsonl; .real-models/tasks by default.
ruler: needle tasks (bench/ruler.py) at --lengths. --text: the haystack; Wikipedia introductions by default.
longbench: eight tasks (bench/longbench.py). --text: a checkout of LongBench with its data.

Each score is written to --json at once.
"""

import argparse
import gzip
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import longbench
import ruler
import six_tasks
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from grouper import Checkpoint, GrouperError, HeadLayout
from grouper.calibration.text import load_tokenizer
from grouper.export.check import check_modelling_file
from grouper.export.facts import MARKER, read_facts
from grouper.families.architecture import Architecture
from grouper.model.auto import auto_class
from grouper.model.loadable import auto_of_export, quiet
from grouper.model.loading import load
from grouper.uptraining.exported import ExportedModel

REAL = Path(__file__).resolve().parent.parent / ".real-models"
PUBLISHED = Path(__file__).with_name("published_figures.json")
WINDOW, C4_DOCUMENTS, C4_WINDOWS = 2048, 1100, 256
Scores = dict[str, float]


# Text of the two perplexities


def wikitext2(args: argparse.Namespace) -> str:
    """Lines of the test set joined as papers do: each keeps its own line end, and blank ones are empty."""
    if args.text:
        lines = args.text.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [line if line.strip() else "" for line in lines]
    else:
        rows = from_hub("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"]
    return "\n\n".join(rows)


def c4(args: argparse.Namespace) -> str:
    """First documents of a validation shard. A plain text's documents end with a blank line."""
    if not args.text:
        files = {"validation": "en/c4-validation.00000-of-00008.json.gz"}
        return " ".join(from_hub("allenai/c4", data_files=files, split="validation")[:C4_DOCUMENTS]["text"])
    packed = args.text.suffix == ".gz"
    text = gzip.decompress(args.text.read_bytes()).decode() if packed else args.text.read_text(encoding="utf-8")
    if ".json" in args.text.name:
        documents = [json.loads(line)["text"] for line in text.splitlines()[:C4_DOCUMENTS]]
    else:
        documents = text.split("\n\n")[:C4_DOCUMENTS]
    return " ".join(documents)


def from_hub(name: str, *words: str, **options: Any) -> Any:
    try:
        from datasets import load_dataset

        return load_dataset(name, *words, **options)
    except Exception as error:
        raise GrouperError(f"{name} is not on this machine and did not load from the Hub ({type(error).__name__}): "
                           "give a file of its form by --text") from error  # fmt: skip


def perplexity(read: Callable[[argparse.Namespace], str], most: int | None) -> Callable[..., Scores]:
    """Protocol: the exponential of the mean loss over windows, each predicted from its own first token on."""

    def measure(model: Any, tokenizer: Any, args: argparse.Namespace) -> Scores:
        ids = torch.tensor(tokenizer(read(args), verbose=False)["input_ids"])
        limit = min(n for n in (most, args.limit, len(ids) // WINDOW) if n is not None)
        if limit < 1:
            raise GrouperError(f"the text has {len(ids)} tokens: expected at least one window of {WINDOW}")
        loss = mean_loss(model, ids[: limit * WINDOW].view(limit, WINDOW), max(1, args.batch_tokens // WINDOW))
        return {"perplexity": math.exp(loss), "nats": loss, "windows": limit}

    return measure


@torch.inference_mode()
def mean_loss(model: Any, windows: Tensor, at_once: int) -> float:
    """Nats per token of windows [n, tokens]."""
    total = 0.0
    for rows in windows.split(at_once):
        rows = rows.to(model.device)
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
        for said, wanted in zip(logits, rows[:, 1:]):  # one at a time, in float32
            total += cross_entropy(said.float(), wanted.to(said.device)).item()
    return total / len(windows)


# The other protocols


def tasks(model: Any, tokenizer: Any, args: argparse.Namespace) -> Scores:
    folder = needed(args.text or REAL / "tasks", *(f"{task}.jsonl" for task in six_tasks.TASKS))
    return six_tasks.six_tasks(model, tokenizer, folder, args.limit, args.batch_tokens)


def needles(model: Any, tokenizer: Any, args: argparse.Namespace) -> Scores:
    text = needed(args.text or REAL / "wikipedia-evaluation.txt").read_text(encoding="utf-8")
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [length for length in map(int, args.lengths.split(",")) if most is None or length <= most]
    if len(lengths) < len(args.lengths.split(",")):
        print(f"  the model has {most:,} positions: longer texts are left out")
    return ruler.ruler(model, tokenizer, text, lengths, args.limit or 50, args.seed, 8 * args.batch_tokens)


def long_bench(model: Any, tokenizer: Any, args: argparse.Namespace) -> Scores:
    if args.text is None:
        raise GrouperError("longbench needs a checkout of github.com/THUDM/LongBench with the unpacked data.zip in "
                           "data/: give it by --text")  # fmt: skip
    folder = needed(args.text, *(f"data/{task}.jsonl" for task in longbench.TASKS))
    return longbench.longbench(model, tokenizer, folder, args.limit, 8 * args.batch_tokens)


def needed(place: Path, *files: str) -> Path:
    """The file or folder. Raises GrouperError if it or one of its files is not there."""
    for path in (place, *(place / file for file in files)):
        if not path.exists():
            raise GrouperError(f"{path} is not there: `python bench/fetch_real_models.py` fetches texts and items, or "
                               "give others by --text")  # fmt: skip
    return place


PROTOCOLS: dict[str, Callable[..., Scores]] = {
    "wikitext2": perplexity(wikitext2, None), "c4": perplexity(c4, C4_WINDOWS), "six-tasks": tasks,
    "longbench": long_bench, "ruler": needles,
}  # fmt: skip
SHOWN = {"wikitext2": "perplexity", "c4": "perplexity", "six-tasks": "mean", "longbench": "mean"}


# Models


def opened(name: str, device: str, dtype: str) -> tuple[Any, Any, float]:
    """Model, tokenizer, and KiB of KV cache per token in bfloat16."""
    checkpoint = Checkpoint.open(name).local()
    own_code = "auto_map" in checkpoint.config and (checkpoint.folder / MARKER).is_file()
    if own_code:
        check_modelling_file(ExportedModel.open(checkpoint.folder))
    auto = auto_of_export(checkpoint.config) if own_code else auto_class(checkpoint.config)
    options = {"device_map": {"": device}} if "cuda" in device else {}
    with quiet():
        model = load(auto, checkpoint.folder, own_code, dtype=getattr(torch, dtype), **options).eval()
        tokenizer = load_tokenizer(checkpoint)
    return model, tokenizer, kv_bytes(checkpoint) / 1024


def kv_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of KV cache per token in bfloat16."""
    if (checkpoint.folder / MARKER).is_file():
        return HeadLayout.from_data(read_facts(checkpoint.folder)["layout"]).kv_bytes_per_token()
    return Architecture.of(checkpoint.config).ungrouped.kv_bytes_per_token()


# Tables


def table(found: dict[str, Any]) -> str:
    """Markdown: what was run, a row for each model, and the published rows."""
    protocol, text = found["protocol"], found["text"]
    of_text = f" Text: {text['name']}" + (f" (sha256 {text['sha256']})." if text["sha256"] else ".")
    lines = [f"{protocol} in {found['dtype']} on {found['device']}.{of_text}", ""]
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["scores"]))
    lines += [f"| {protocol} | KV KiB per token | {' | '.join(names)} | seconds |", "|" + " --- |" * (3 + len(names))]
    for row in found["rows"]:
        cells = [shown(row["scores"][name]) if name in row["scores"] else "" for name in names]
        lines.append(f"| {row['model']} | {row['kv_kib']:.4g} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    published = [row for row in json.loads(PUBLISHED.read_text()) if protocol in row]
    if published:
        lines += ["", "Published, on the protocol's own text and for other models: compare changes, not values.", ""]
        lines += [f"| published | KV kept | method | needs | {SHOWN[protocol]} | source |", "|" + " --- |" * 6]
        columns = ("model", "kv", "method", "needs", protocol, "source")
        lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in published]
    return "\n".join(lines)


def shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}" if value < 10 else f"{value:.2f}"


def sha256(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders or Hub ids")
    parser.add_argument("--tables", type=Path, nargs="+", help="print what earlier --json files hold")
    parser.add_argument("--protocol", choices=PROTOCOLS)
    parser.add_argument("--text", type=Path, help="local data, see above")
    parser.add_argument("--limit", type=int, help="windows, items of a task, or questions of a task and length (50)")
    parser.add_argument("--lengths", default="4096,8192,16384", help="tokens of ruler's texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, help="tokens of one pass (16384 on a GPU, 2048 on a CPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for path in args.tables or ():
        print(table(json.loads(path.read_text())) + "\n")
    if args.tables:
        return
    if not args.models or not args.protocol:
        parser.error("give models and --protocol, or --tables")
    on_gpu = "cuda" in args.device
    args.dtype = args.dtype or ("bfloat16" if on_gpu else "float32")
    args.batch_tokens = args.batch_tokens or (16_384 if on_gpu else 2048)
    try:
        print(table(measured(args)))
    except GrouperError as error:
        raise SystemExit(f"error: {error}") from error


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Scores of every model; also the content of --json."""
    found: dict[str, Any] = {
        "protocol": args.protocol, "dtype": args.dtype, "seed": args.seed, "limit": args.limit,
        "device": torch.cuda.get_device_name(args.device) if "cuda" in args.device else "CPU",
        "text": {"name": args.text.name if args.text else "the protocol's own", "sha256": sha256(args.text)},
        "rows": [],
    }  # fmt: skip
    for name in args.models:
        print(f"{name}:", flush=True)
        model, tokenizer, kv_kib = opened(name, args.device, args.dtype)
        began = time.perf_counter()
        scores = PROTOCOLS[args.protocol](model, tokenizer, args)
        took = time.perf_counter() - began
        found["rows"].append({"model": Path(name).name, "kv_kib": kv_kib, "scores": scores, "seconds": took})
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
        del model
    return found


if __name__ == "__main__":
    main()
