"""Regrouping of a model's KV heads: layouts, merges, refinement, training and export.

>>> from grouper import Checkpoint, inspect
>>> inspect(Checkpoint.open("demo")).kv_heads
16
"""

import os
from typing import TYPE_CHECKING

from grouper.lazy import lazily

if TYPE_CHECKING:
    import grouper.export as export
    from grouper.calibration.calibration import Calibration as Calibration
    from grouper.calibration.source import TextSource as TextSource
    from grouper.checkpoint.checkpoint import Checkpoint as Checkpoint
    from grouper.errors import GrouperError as GrouperError
    from grouper.export.options import ExportOptions as ExportOptions
    from grouper.families.architecture import Architecture as Architecture
    from grouper.families.inspection import inspect as inspect
    from grouper.layout import Grouping as Grouping
    from grouper.layout import HeadLayout as HeadLayout
    from grouper.layout import LayerLayout as LayerLayout
    from grouper.machine import Machine as Machine
    from grouper.progress import progress_bar as progress_bar
    from grouper.refinement.options import RefineOptions as RefineOptions
    from grouper.uptraining.options import UptrainOptions as UptrainOptions
    from grouper.uptraining.uptrain import uptrain_model as uptrain_model

# Waiting torch threads sleep instead of spinning. On a busy machine, spinning threads take the cores that the others
# need, and small eigenproblems run thirty times slower. The setting takes effect if torch is imported later.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Without it, a GPU refuses matrix products when deterministic gradients are asked for. Older versions of torch read
# it only once, at the first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

MODULES = {
    "Architecture": "grouper.families.architecture",
    "Calibration": "grouper.calibration.calibration",
    "Checkpoint": "grouper.checkpoint.checkpoint",
    "ExportOptions": "grouper.export.options",
    "GrouperError": "grouper.errors",
    "Grouping": "grouper.layout",
    "HeadLayout": "grouper.layout",
    "LayerLayout": "grouper.layout",
    "Machine": "grouper.machine",
    "RefineOptions": "grouper.refinement.options",
    "TextSource": "grouper.calibration.source",
    "UptrainOptions": "grouper.uptraining.options",
    "inspect": "grouper.families.inspection",
    "progress_bar": "grouper.progress",
    "uptrain_model": "grouper.uptraining.uptrain",
}
__all__ = [*MODULES, "export"]
__getattr__ = lazily(__name__, MODULES)
