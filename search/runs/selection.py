"""What is asked of a run: one of its layouts."""

from dataclasses import dataclass

from grouper.export.options import ASKED
from grouper.merging import MERGES
from grouper.option_fields import option


@dataclass(frozen=True)
class Selection:
    """One of layout, kv_ratio and kv_bytes_per_token; the latter two are budgets."""

    layout: int | None = option(None, "The layout of this number in pareto.csv.", panel="Layout")
    kv_ratio: str | None = option(
        None, "Largest KV cache, relative to the original's: 0.5, 1/3 or 50%.", panel="Layout", metavar="RATIO"
    )
    kv_bytes_per_token: int | None = option(None, "The largest KV cache per token, in bytes.", panel="Layout")
    deploy: str | None = option(
        None, "stock, padded, ragged or any; stock where one fits.", panel="Layout", words=ASKED
    )
    merge: str | None = option(None, "How heads become one; the run's own unless given.", panel="Layout", words=MERGES)
