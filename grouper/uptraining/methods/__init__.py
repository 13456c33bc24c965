"""Methods for training an exported model. A new one is a file here with a subclass of TrainingMethod, and an entry
below."""

from typing import TYPE_CHECKING

from grouper.lazy import lazily
from grouper.registry import Named, Registry
from grouper.uptraining.published import PUBLISHED

if TYPE_CHECKING:
    from grouper.uptraining.methods.method import TrainingMethod as TrainingMethod

METHODS: "Registry[TrainingMethod]" = Registry(
    "way to train", Named("distill", "grouper.uptraining.methods.distill.Distill"), *PUBLISHED
)

MODULES = {"TrainingMethod": "grouper.uptraining.methods.method"}
__all__ = ["METHODS", *MODULES]
__getattr__ = lazily(__name__, MODULES)
