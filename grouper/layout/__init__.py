r"""Layouts: the query heads that read each KV head, and the original heads that each KV head is merged from.

MHA          GQA, equal      GQA, any sizes
q q q q      q q  q q        q q q  q
| | | |       \|   |/         \|/   |
k k k k       k   k            k    k
"""

from grouper.layout.grouping import Grouping, Groups, canonical_labels, groups_of
from grouper.layout.layer import LayerLayout
from grouper.layout.model import CACHES, HeadLayout

__all__ = ["CACHES", "Grouping", "Groups", "HeadLayout", "LayerLayout", "canonical_labels", "groups_of"]
