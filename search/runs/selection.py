"""What is asked of a run: one of its layouts."""

from dataclasses import dataclass

from grouper.errors import GrouperError
from grouper.export.options import ASKED
from grouper.kv_cache import KEPT_IN
from grouper.merging import MERGES
from grouper.names import expected
from grouper.option_fields import option
from grouper.shares import parsed_share

ANY = "any"
ASKED_CACHES = (ANY, *KEPT_IN)


@dataclass(frozen=True)
class Selection:
    """One of layout, kv_ratio and kv_bytes_per_token; the latter two are budgets. kv_cache: "any", or a type of KV
    cache that the layout is to be kept in; the run's own unless given."""

    layout: int | None = option(None, "The layout of this number in pareto.csv.", panel="Layout")
    kv_ratio: str | None = option(
        None, "Largest KV cache, relative to the original's: 0.5, 1/3 or 50%.", panel="Layout", metavar="RATIO"
    )
    kv_bytes_per_token: int | None = option(None, "The largest KV cache per token, in bytes.", panel="Layout")
    deploy: str | None = option(
        None, "stock, padded, ragged or any; stock where one fits.", panel="Layout", words=ASKED
    )
    merge: str | None = option(None, "How heads become one; the run's own unless given.", panel="Layout", words=MERGES)
    kv_cache: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether neither a layout nor a budget is named."""
        return self.layout is None and self.kv_ratio is None and self.kv_bytes_per_token is None

    def check(self) -> None:
        """Raise GrouperError for what no run can answer."""
        if sum(x is not None for x in (self.layout, self.kv_ratio, self.kv_bytes_per_token)) != 1:
            raise GrouperError("say which layout by one of --layout, --kv-ratio and --kv-bytes-per-token")
        if self.kv_cache not in (None, *ASKED_CACHES):
            raise GrouperError(f"unknown KV cache type {self.kv_cache!r}: {expected(self.kv_cache, ASKED_CACHES)}")
        if self.kv_cache == ANY and self.layout is not None:
            raise GrouperError("--kv-cache any chooses a type within a budget: name the type beside --layout")
        if self.deploy is not None and self.deploy not in ASKED:
            raise GrouperError(f"unknown deployment class {self.deploy!r}: {expected(self.deploy, ASKED)}")
        if self.kv_ratio is not None:
            parse_ratio(self.kv_ratio)


def parse_ratio(text: str) -> float:
    """ "0.5", "1/3" or "50%". Raises GrouperError outside (0, 1]."""
    return parsed_share(text, "KV ratio", most=1)
