"""What a grouping is, and how it is put into a model.

>>> from grouper import Checkpoint, HeadLayout, export  # doctest: +SKIP
"""

from grouper.architectures import Architecture
from grouper.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export import export
from grouper.inspect import inspect
from grouper.layout import Grouping, HeadLayout, LayerLayout

__all__ = ["Architecture", "Checkpoint", "GrouperError", "Grouping", "HeadLayout", "LayerLayout", "export", "inspect"]
