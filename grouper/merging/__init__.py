"""Merges of several KV heads into one. A new merge is a file here with a subclass of Merge, and an entry below."""

from typing import TYPE_CHECKING

from grouper.layout import HeadLayout
from grouper.lazy import lazily
from grouper.registry import Named, Registry

if TYPE_CHECKING:
    from grouper.merging.base import Merge as Merge
    from grouper.merging.mean import MEAN as MEAN

MERGES: "Registry[Merge]" = Registry(
    "merge",
    Named("mean", "grouper.merging.mean.Mean"),
    Named("select", "grouper.merging.select.Select"),
    Named("first", "grouper.merging.select.Select", first=True),
    Named("procrustes", "grouper.merging.procrustes.Procrustes"),
    Named("weighted", "grouper.merging.weighted.Weighted"),
    Named("weighted-column", "grouper.merging.weighted.Weighted", kind="column"),
    Named("weighted-row", "grouper.merging.weighted.Weighted", kind="row"),
    Named("spectral", "grouper.merging.spectral.Spectral"),
)


def merge_for(layout: HeadLayout, merge: "Merge") -> "Merge":
    """Merge to use: the given one, or the mean for a layout that only averaging can follow."""
    return MERGES["mean"] if layout.only_mean else merge


MODULES = {"MEAN": "grouper.merging.mean", "Merge": "grouper.merging.base"}
__all__ = ["MERGES", "merge_for", *MODULES]
__getattr__ = lazily(__name__, MODULES)
