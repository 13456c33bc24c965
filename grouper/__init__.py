"""What a grouping is, and how it is put into a model.

>>> from grouper import Checkpoint, inspect
>>> inspect(Checkpoint.open("demo")).kv_heads
16
"""

import os

from grouper.lazy import lazily

# Threads of torch that wait for one another sleep instead of spinning: on a busy machine, spinning ones fight for the
# cores that the others need, and small eigenproblems become thirty times slower. It counts if torch comes later.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MODULES = {
    "Architecture": "grouper.model.architecture",
    "Checkpoint": "grouper.model.checkpoint",
    "ExportOptions": "grouper.export.options",
    "GrouperError": "grouper.errors",
    "Grouping": "grouper.layout",
    "HeadLayout": "grouper.layout",
    "LayerLayout": "grouper.layout",
    "UptrainOptions": "grouper.uptraining.options",
    "inspect": "grouper.model.inspection",
    "uptrain_model": "grouper.uptraining.uptrain",
}
__all__ = [*MODULES, "export"]
__getattr__ = lazily(__name__, MODULES)
