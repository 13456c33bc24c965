"""What a grouping is, and how it is put into a model.

>>> from grouper import Checkpoint, inspect
>>> inspect(Checkpoint.open("demo")).kv_heads
16
"""

from grouper import export
from grouper.errors import GrouperError
from grouper.export import ExportOptions
from grouper.layout import Grouping, HeadLayout, LayerLayout
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.model.inspection import inspect

__all__ = [
    "Architecture", "Checkpoint", "ExportOptions", "GrouperError", "Grouping", "HeadLayout", "LayerLayout", "export",
    "inspect",
]  # fmt: skip
