"""Selection of one layout of a run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grouper.errors import GrouperError
from grouper.export.hf.slots import check_gpus
from grouper.export.options import ASKED
from grouper.kv_cache import KEPT_IN
from grouper.merging import MERGES
from grouper.names import expected
from grouper.option_fields import option
from grouper.shares import parsed_share, rounding_of

if TYPE_CHECKING:
    from grouper.families.architecture import Architecture
    from search.options import SearchOptions

SAME = 1e-9  # largest difference between two ratios of one size

ANY = "any"
ASKED_CACHES = (ANY, *KEPT_IN)


@dataclass(frozen=True)
class Selection:
    """One of layout, kv_ratio and kv_bytes_per_token; the latter two are budgets. kv_cache: KV cache type that the
    layout will be served with, or "any" (default: the run's own). tp: number of GPUs that engines will split the model
    over; within a budget, only layouts whose KV heads they can split are taken."""

    layout: int | None = option(None, "Number of the layout in pareto.csv, instead of a budget.", panel="Layout")
    kv_ratio: str | None = option(
        None, "Largest KV cache, relative to the original's: 0.5, 1/3 or 50%.", panel="Layout", metavar="RATIO"
    )
    kv_bytes_per_token: int | None = option(None, "Largest KV cache per token, in bytes.", panel="Layout")
    deploy: str | None = option(
        None, "Export class: stock, padded, ragged or any (default: stock if one fits).", panel="Layout", words=ASKED
    )
    merge: str | None = option(
        None, "Merge, the formula that makes one head of a group (default: the run's).", panel="Layout", words=MERGES
    )
    kv_cache: str | None = None
    tp: int = 1

    @property
    def is_open(self) -> bool:
        """Whether neither a layout nor a budget is given."""
        return self.layout is None and self.kv_ratio is None and self.kv_bytes_per_token is None

    def check(self) -> None:
        """Raise GrouperError for a selection that is invalid for every run."""
        if sum(x is not None for x in (self.layout, self.kv_ratio, self.kv_bytes_per_token)) != 1:
            raise GrouperError("say which layout by one of --layout, --kv-ratio and --kv-bytes-per-token")
        if self.kv_cache not in (None, *ASKED_CACHES):
            raise GrouperError(f"unknown KV cache type {self.kv_cache!r}: {expected(self.kv_cache, ASKED_CACHES)}")
        if self.kv_cache == ANY and self.layout is not None:
            raise GrouperError("--kv-cache any chooses a type within a budget: name the type beside --layout")
        if self.deploy is not None and self.deploy not in ASKED:
            raise GrouperError(f"unknown deployment class {self.deploy!r}: {expected(self.deploy, ASKED)}")
        check_gpus(self.tp)
        if self.tp > 1 and self.deploy == "ragged":
            raise GrouperError(f"engines cannot split ragged models over GPUs (`tp={self.tp}`): drop `deploy=ragged`")
        if self.kv_ratio is not None:
            parse_ratio(self.kv_ratio)

    def check_reachable(self, architecture: "Architecture", options: "SearchOptions") -> None:
        """Raise GrouperError if the budget is below the smallest layout that a search can find, which follows from
        shapes alone."""
        if self.kv_cache is not None:  # its bytes differ from those that the search counts
            return
        smallest = options.smallest(architecture)
        ratio = smallest.kv_ratio if smallest.kv_ratio < 1 else smallest.weight_ratio  # of a grouped encoder
        size = smallest.kv_bytes_per_token(options.kv_dtype)
        if self.kv_ratio is not None and ratio - parse_ratio(self.kv_ratio) > rounding_of(self.kv_ratio) + SAME:
            raise GrouperError(f"no layout within KV ratio {self.kv_ratio}: the smallest of this model has {ratio:.1%}")
        if self.kv_bytes_per_token is not None and size > self.kv_bytes_per_token:
            asked = f"{self.kv_bytes_per_token:,} KV bytes per token"
            raise GrouperError(f"no layout within {asked}: the smallest of this model has {size:,} bytes")


def parse_ratio(text: str) -> float:
    """Share of the cache from text like "0.5", "1/3" or "50%". Raises GrouperError outside (0, 1]."""
    return parsed_share(text, "KV ratio", most=1)
