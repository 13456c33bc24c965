"""What a grouping is, and how it is put into a model.

>>> from grouper import Checkpoint, HeadLayout, export  # doctest: +SKIP
"""

from grouper.errors import GrouperError
from grouper.export import export
from grouper.layout import Grouping, HeadLayout, LayerLayout
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.model.inspection import inspect

__all__ = ["Architecture", "Checkpoint", "GrouperError", "Grouping", "HeadLayout", "LayerLayout", "export", "inspect"]
