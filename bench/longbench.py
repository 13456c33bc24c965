"""Eight tasks of LongBench (arXiv 2308.14508) that papers on KV caches report, from a checkout of it.

The checkout has its prompts and lengths of answers in config/ (in LongBench/config/ in later versions) and the unpacked
data.zip in data/. Prompts longer than the model's positions lose their middle, as there. Scores are percent: F1 of
words for triviaqa and qasper, the class for trec, the longest common subsequence (ROUGE-L) for samsum, qmsum and
multi_news, and similarity of the next line for lcc and repobench-p. ROUGE-L is of whole answers; the package that
LongBench calls takes them sentence by sentence, so compare these three only with each other.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ruler import answers, begun

TASKS = ("triviaqa", "qasper", "trec", "samsum", "lcc", "repobench-p", "qmsum", "multi_news")
BARE = ("trec", "triviaqa", "samsum", "lcc", "repobench-p")  # asked without a chat template
ONE_LINE = ("trec", "triviaqa", "samsum")  # only the answer's first line counts


def longbench(model: Any, tokenizer: Any, folder: Path, limit: int | None, tokens: int) -> dict[str, float]:
    """Score in percent of each task, and their mean. limit: the first items of each task."""
    config = next(path for path in (folder / "config", folder / "LongBench" / "config") if path.is_dir())
    prompts, lengths = (json.loads((config / f"dataset2{what}.json").read_text()) for what in ("prompt", "maxlen"))
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 32_768
    found = {}
    for task in TASKS:
        lines = (folder / "data" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
        rows = [json.loads(line) for line in lines]
        asked = [shortened(tokenizer, prompts[task].format(**row), room - lengths[task] - 64) for row in rows]
        asked = asked if task in BARE else [begun(tokenizer, text, "") for text in asked]
        said = answers(model, tokenizer, asked, tokens, lengths[task])
        scores = [best(task, answer, row) for answer, row in zip(said, rows)]
        found[task] = 100 * sum(scores) / len(scores)
        print(f"  {task}: {found[task]:.2f} ({len(rows)} items)", flush=True)
    return {**found, "mean": sum(found.values()) / len(found)}


def shortened(tokenizer: Any, text: str, most: int) -> str:
    """The text without its middle, if it has more than `most` tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) <= most:
        return text
    half = most // 2
    return "".join(tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:]))


def best(task: str, answer: str, row: dict) -> float:
    """Highest score of an answer over the right ones."""
    if task in ONE_LINE:
        answer = answer.lstrip("\n").split("\n")[0]
    if task == "trec":
        return max(same_class(answer, right, row["all_classes"]) for right in row["answers"])
    return max(SCORES[task](answer, right) for right in row["answers"])


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def harmonic(common: int, answer: int, right: int) -> float:
    """F1 of this many common parts."""
    return 2 * common / (answer + right) if common else 0.0


def f1(answer: str, right: str) -> float:
    """F1 of the words that both share, in any order."""
    mine, theirs = words(answer), words(right)
    return harmonic((Counter(mine) & Counter(theirs)).total(), len(mine), len(theirs))


def rouge_l(answer: str, right: str) -> float:
    """F1 of the longest common subsequence of words."""
    mine, theirs = answer.split(), right.split()
    row = [0] * (len(theirs) + 1)
    for word in mine:
        above, row = row, [0]
        for place, other in enumerate(theirs):
            row.append(above[place] + 1 if word == other else max(row[-1], above[place + 1]))
    return harmonic(row[-1], len(mine), len(theirs))


def same_line(answer: str, right: str) -> float:
    """Similarity of the first line that is neither a comment nor a fence."""
    lines = answer.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, code, right).ratio()) / 100


def same_class(answer: str, right: str, every: list[str]) -> float:
    """The right class's share among the classes that the answer names. A class whose name is part of the right one's
    does not count."""
    named = [name for name in every if name in answer and (name == right or name not in right)]
    return 1 / len(named) if right in named else 0.0


SCORES: dict[str, Callable[[str, str], float]] = {
    "triviaqa": f1, "qasper": f1, "samsum": rouge_l, "qmsum": rouge_l, "multi_news": rouge_l, "lcc": same_line,
    "repobench-p": same_line,
}  # fmt: skip
