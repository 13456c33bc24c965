r"""Which query heads read which KV head, and which original heads that KV head is merged from.

MHA          GQA, equal      GQA, any sizes
q q q q      q q  q q        q q q  q
| | | |       \|   |/         \|/   |
k k k k       k   k            k    k
"""

from grouper.layout.grouping import Grouping, Groups, canonical_labels, groups_of
from grouper.layout.layer import LayerLayout
from grouper.layout.model import CACHES, HeadLayout

__all__ = ["CACHES", "Grouping", "Groups", "HeadLayout", "LayerLayout", "canonical_labels", "groups_of"]
