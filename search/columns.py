"""The columns that `evaluate` adds to pareto.csv: what they are called, which are standard errors."""

import re

SE = re.compile(r"_se(:|$)|_stderr(,|$)")
CALLED = {
    "nll": "nats per token", "kl": "KL to the original", "agreement": "agreement with the original",
    "cosine": "cosine with the original's vectors",
}  # fmt: skip
TRADED = {"kv_ratio": "KV cache, of the original's", "weight_ratio": "weights of K and V, of the original's"}
JUDGES = {
    "nll": 1,
    "cosine": -1,
    "kl": 1,
}  # by which layouts are ranked, the first that was measured; -1: more is better


def called(column: str) -> str:
    """A column for people; tasks keep their names."""
    kind, colon, text = column.partition(":")
    return CALLED.get(kind, kind) + (f", {text}" if colon else "")


def error_of(column: str) -> str:
    """The column that holds its standard error.

    >>> error_of("kl:wiki"), error_of("piqa,acc"), error_of("gsm8k,exact_match,strict-match")
    ('kl_se:wiki', 'piqa,acc_stderr', 'gsm8k,exact_match_stderr,strict-match')
    """
    if "," in column:
        task, metric, *which = column.split(",")
        return ",".join((task, f"{metric}_stderr", *which))
    kind, colon, text = column.partition(":")
    return f"{kind}_se{colon}{text}"
