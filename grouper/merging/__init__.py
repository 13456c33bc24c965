"""How several KV heads become one. A merge is a function (Attention, LayerLayout, InputMoments) -> Attention in a file of its own,
and a line here.

The result has the layout's KV heads in its order. A merge may also change q and o (a free change of basis folds into them).
"""

from collections.abc import Callable
from functools import partial

from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.errors import GrouperError
from grouper.layout import LayerLayout
from grouper.merging import mean, procrustes, select, spectral, weighted

Merge = Callable[[Attention, LayerLayout, InputMoments], Attention]
MERGES: dict[str, Merge] = {
    "mean": mean.merge,
    "select": select.merge,
    "first": partial(select.merge, first=True),
    "procrustes": procrustes.merge,
    "weighted": weighted.merge,
    "weighted-column": partial(weighted.merge, kind="column"),
    "weighted-row": partial(weighted.merge, kind="row"),
    "spectral": spectral.merge,
}
BEFORE_REFINEMENT = {"spectral": partial(spectral.merge, rescale=False)}  # where refinement wants another start


def merge_named(name: str, before_refinement: bool = False) -> Merge:
    if name not in MERGES:
        raise GrouperError(f"unknown merge {name!r}: expected one of {', '.join(MERGES)}")
    return BEFORE_REFINEMENT.get(name, MERGES[name]) if before_refinement else MERGES[name]
