"""Columns that `evaluate` adds to pareto.csv: their names, and which of them are standard errors."""

import re
from collections.abc import Iterable

SE = re.compile(r"_se(@|:|$)|_stderr(,|$)")
CALLED = {
    "nll": "nats per token", "kl": "KL to the original", "agreement": "agreement with the original",
    "cosine": "cosine with the original's vectors",
}  # fmt: skip
TRADED = {"kv_ratio": "KV cache, of the original's", "weight_ratio": "weights of K and V, of the original's"}
COMPARED = ("kl", "cosine")  # every row that was compared with its original has one of these
JUDGES = {
    "nll": 1,
    "cosine": -1,
    "kl": 1,
}  # layouts are ranked by the first one that was measured; -1: higher is better


def band_of(column: str) -> str:
    """Positions that a column covers; empty for all positions.

    >>> band_of("nll@256-512:code"), band_of("nll:a@b"), band_of("humaneval,pass@1")
    ('256-512', '', '')
    """
    return "" if "," in column.partition(":")[0] else column.partition(":")[0].partition("@")[2]


def called(column: str) -> str:
    """Readable name of a column; tasks keep their names.

    >>> called("nll@256-512:code")
    'nats per token at 256-512, code'
    """
    if "," in column.partition(":")[0]:
        return column
    kind, colon, text = column.partition(":")
    kind, at, band = kind.partition("@")
    return CALLED.get(kind, kind) + (f" at {band}" if at else "") + (f", {text}" if colon else "")


def in_order(names: Iterable[str]) -> list[str]:
    """Readable names of columns, the most important first.

    >>> in_order(["KL to the original", "piqa,acc", "nats per token"])
    ['nats per token', 'KL to the original', 'piqa,acc']
    """
    first = (CALLED["nll"], "perplexity", CALLED["kl"])
    return sorted(names, key=lambda name: next((i for i, one in enumerate(first) if name.startswith(one)), len(first)))


def error_of(column: str) -> str:
    """Name of the column that holds a column's standard error.

    >>> error_of("kl:wiki"), error_of("piqa,acc"), error_of("gsm8k,exact_match,strict-match")
    ('kl_se:wiki', 'piqa,acc_stderr', 'gsm8k,exact_match_stderr,strict-match')
    >>> error_of("nll@256-512:wiki")
    'nll_se@256-512:wiki'
    """
    if "," in column:
        task, metric, *which = column.split(",")
        return ",".join((task, f"{metric}_stderr", *which))
    kind = re.split("[@:]", column, maxsplit=1)[0]
    return f"{kind}_se{column.removeprefix(kind)}"
