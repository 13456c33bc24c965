"""Six zero-shot tasks by the rules of lm-evaluation-harness, on items from files, without the harness.

A choice's score is the log-likelihood of its tokens after the context. acc takes the choice of the highest score,
acc_norm that of the highest score per character. Papers report the mean of six: acc_norm of openbookqa, hellaswag,
piqa, arc_easy and arc_challenge, and acc of winogrande. Files: TASK.jsonl as bench/benchmark_items.py writes them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TASKS = ("openbookqa", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande")
LONGEST = 2048  # tokens of a context and its choice
Request = tuple[list[int], int]  # ids, and how many of the last are the choice


def six_tasks(model: Any, tokenizer: Any, folder: Path, limit: int | None, tokens: int) -> dict[str, float]:
    """Accuracy in percent of each task, and their mean. tokens: of one pass. limit: the first items of each task."""
    found = {}
    for task in TASKS:
        lines = (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        found[task] = 100 * accuracy(model, tokenizer, [json.loads(line) for line in lines[:limit]], tokens)
        print(f"  {task}: {found[task]:.2f} ({len(lines[:limit])} items)", flush=True)
    return {**found, "mean": sum(found.values()) / len(found)}


def accuracy(model: Any, tokenizer: Any, items: list[dict], tokens: int) -> float:
    """Share of items whose right choice has the highest score: per character, except for items of `contexts`, whose
    ending is the same."""
    pairs = [pair for item in items for pair in choices(item)]
    scores = log_likelihoods(model, [request(tokenizer, *pair) for pair in pairs], tokens).tolist()
    right, place = 0, 0
    for item in items:
        count = len(choices(item))
        mine = scores[place : place + count]
        if "choices" in item:
            mine = [score / len(choice) for score, choice in zip(mine, item["choices"])]
        right += mine.index(max(mine)) == item["gold"]
        place += count
    return right / len(items)


def choices(item: dict) -> list[tuple[str, str]]:
    """Pairs (context, continuation) of an item, one for each choice."""
    if "contexts" in item:
        return [(context, f" {item['ending']}") for context in item["contexts"]]
    return [(item["context"], f" {choice}") for choice in item["choices"]]


def request(tokenizer: Any, context: str, continuation: str) -> Request:
    """Ids of both together. Spaces at the context's end belong to the continuation, as in the harness."""
    bare = context.rstrip()
    whole = tokenizer(context + continuation)["input_ids"]
    before = tokenizer(bare)["input_ids"]
    return whole[-LONGEST - 1 :], len(whole) - len(before)


@torch.inference_mode()
def log_likelihoods(model: Any, requests: list[Request], tokens: int) -> Tensor:
    """Sum of the log-likelihoods of each request's choice [n], in batches of similar length."""
    scores = torch.zeros(len(requests), dtype=torch.float64)
    order, start = sorted(range(len(requests)), key=lambda i: -len(requests[i][0])), 0
    while start < len(order):
        longest = len(requests[order[start]][0]) - 1
        rows = order[start : start + max(1, tokens // longest)]
        start += len(rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for k, row in enumerate(rows):  # padded at the end, where causal attention does not look
            ids[k, : len(requests[row][0]) - 1] = torch.tensor(requests[row][0][:-1])
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits  # [rows, longest, vocabulary]
        for k, row in enumerate(rows):
            whole, count = requests[row]
            wanted = torch.tensor(whole[-count:], device=logits.device)
            said = logits[k, len(whole) - 1 - count : len(whole) - 1].float().log_softmax(-1)
            scores[row] = said.gather(1, wanted[:, None]).double().sum().item()
    return scores
