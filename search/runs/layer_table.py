"""Candidates of stage 1 for one layer, as rows of layers/00.csv."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grouper.errors import GrouperError
from grouper.layout import Grouping, LayerLayout
from grouper.parsing import shown
from grouper.schema import Row, document, read_rows
from search.methods.candidate import Candidate


def text_of_layer(found: dict[str, list[Candidate]]) -> str:
    """Text of the table. Columns: method, KV heads, error, groups of KV heads as "0 3|1 2", the whole layout as JSON if
    groups do not define it, and K's part of the error. found: candidates by method."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["method", "kv_heads", "error", "groups", "layout", "k_error"])
    for method, candidates in found.items():
        for c in candidates:
            k = c.layout.k
            groups = "|".join(" ".join(map(str, np.flatnonzero(k.labels == g))) for g in range(k.kv_heads))
            plain = LayerLayout.from_labels(k.labels.tolist(), sum(k.sizes) // len(k.labels)) == c.layout
            layout = "" if plain else json.dumps(c.layout.to_data())
            k_error = "" if c.k_error is None else repr(c.k_error)
            table.writerow([method, c.layout.kv_heads, repr(c.error), groups, layout, k_error])
    return text.getvalue()


def candidates_in(path: Path, query_heads: int, kv_heads: int) -> dict[str, list[Candidate]]:
    """Candidates of a layer with these numbers of heads, by method. Raises GrouperError."""
    found: dict[str, list[Candidate]] = {}
    for row in read_rows(path, _CandidateRow):
        found.setdefault(row.method, []).append(row.candidate(query_heads, kv_heads))
    if not found:
        raise GrouperError("it has no rows")
    return found


@dataclass(frozen=True)
class _CandidateRow(Row):
    """A row of layers/00.csv. Older runs lack K's part of the error."""

    method: str
    kv_heads: str
    error: float
    groups: str
    layout: str = ""
    k_error: float | None = None

    def candidate(self, query_heads: int, kv_heads: int) -> Candidate:
        """The candidate of a row. Raises GrouperError if it does not fit a layer with these numbers of heads."""
        layout = LayerLayout.from_data(document(self.layout)) if self.layout else self._plain(query_heads // kv_heads)
        layout.check("it", query_heads, kv_heads)
        if layout.kv_heads != self.kv_heads:
            raise GrouperError(
                f"groups {shown(self.groups)} are {layout.kv_heads} KV heads, kv_heads is {self.kv_heads}"
            )
        return Candidate(layout, self.error, self.k_error)

    def _plain(self, queries_per_kv_head: int) -> LayerLayout:
        """The layout in which every query head follows its KV head."""
        try:
            sources = tuple(tuple(map(int, group.split())) for group in self.groups.split("|"))
        except ValueError as error:
            raise GrouperError(f"groups is {shown(self.groups)}: expected numbers of heads, like 0 3|1 2") from error
        queries = range(queries_per_kv_head)
        readers = tuple(tuple(h * queries_per_kv_head + q for h in group for q in queries) for group in sources)
        return LayerLayout.shared(Grouping(readers, sources))
