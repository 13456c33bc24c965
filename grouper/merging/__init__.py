"""How several KV heads become one. A new merge is a file here with a subclass of Merge, and an entry below."""

from grouper.layout import HeadLayout
from grouper.merging.base import Merge
from grouper.merging.mean import Mean
from grouper.merging.procrustes import Procrustes
from grouper.merging.select import Select
from grouper.merging.spectral import Spectral
from grouper.merging.weighted import Weighted
from grouper.registry import Registry

MEAN = Mean()  # what any layout can be merged by
MERGES: Registry[Merge] = Registry(
    "merge",
    MEAN,
    Select(),
    Select("first", first=True),
    Procrustes(),
    Weighted(),
    Weighted("weighted-column", kind="column"),
    Weighted("weighted-row", kind="row"),
    Spectral(),
)


def merge_for(layout: HeadLayout, merge: Merge) -> Merge:
    """The merge itself, or the mean for a layout that only averaging makes sense of."""
    return MEAN if layout.only_mean else merge


__all__ = ["MEAN", "MERGES", "Merge", "merge_for"]
