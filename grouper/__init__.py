"""What a grouping is, and how it is put into a model.

>>> from grouper import Checkpoint, inspect
>>> inspect(Checkpoint.open("demo")).kv_heads
16
"""

from grouper.lazy import lazily

MODULES = {
    "Architecture": "grouper.model.architecture",
    "Checkpoint": "grouper.model.checkpoint",
    "ExportOptions": "grouper.export.options",
    "GrouperError": "grouper.errors",
    "Grouping": "grouper.layout",
    "HeadLayout": "grouper.layout",
    "LayerLayout": "grouper.layout",
    "inspect": "grouper.model.inspection",
}
__all__ = [*MODULES, "export"]
__getattr__ = lazily(__name__, MODULES)
