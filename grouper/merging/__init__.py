"""How several KV heads become one. A merge is a function (Attention, LayerLayout, InputMoments) -> Attention in a file of its own,
and a line here.

The result has the layout's KV heads in its order. A merge may also change q and o (a free change of basis folds into them).
"""

from collections.abc import Callable

from grouper.attention import Attention
from grouper.calibration import InputMoments
from grouper.errors import GrouperError
from grouper.layout import LayerLayout
from grouper.merging import mean

Merge = Callable[[Attention, LayerLayout, InputMoments], Attention]
MERGES: dict[str, Merge] = {
    "mean": mean.merge,
}


def merge_named(name: str) -> Merge:
    if name not in MERGES:
        raise GrouperError(f"unknown merge {name!r}: expected one of {', '.join(MERGES)}")
    return MERGES[name]
