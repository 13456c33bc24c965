"""Loss by position within windows for the report: nats over the original, with standard errors."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from search.methods.registry import ORIGINAL
from search.runs.columns import band_of, error_of
from search.runs.pareto import ParetoFront


def losses_by_position(front: ParetoFront) -> list[list[dict]]:
    """Series for each row, one per text: text, bands, over (nats over the original), error (NaN for a single window).
    The mean over named texts is left out. [] for the original and for rows without such columns."""
    table, texts = front.table, columns_of_texts(front)
    originals = table[table["method"] == ORIGINAL]
    if originals.empty:
        return [[] for _ in range(len(table))]
    return [[] if row["method"] == ORIGINAL else list(series_of(row, originals.iloc[0], texts))
            for _, row in table.iterrows()]  # fmt: skip


def columns_of_texts(front: ParetoFront) -> dict[str, list[str]]:
    """Columns of each text, in the order of positions. The name "" stands for the mean of all texts, or for a single
    text without a name."""
    texts: dict[str, list[str]] = {}
    for column in front.measured_columns:
        if column.startswith("nll@"):
            texts.setdefault(column.partition(":")[2], []).append(column)
    return {text: columns for text, columns in texts.items() if text or len(texts) == 1}


def series_of(row: pd.Series, original: pd.Series, texts: dict[str, list[str]]) -> Iterator[dict]:
    """Series of the texts that row and original were both measured on. Differences are taken before numbers are
    rounded."""
    for text, columns in texts.items():
        over = [row[column] - original[column] for column in columns]
        if not any(pd.isna(over)):
            errors = [row.get(error_of(column), float("nan")) for column in columns]
            yield {"text": text, "bands": [band_of(column) for column in columns], "over": over, "error": errors}
