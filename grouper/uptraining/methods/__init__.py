"""Ways to train an exported model further. A new one is a file here with a subclass of TrainingMethod, and an entry
below."""

from grouper.registry import Registry
from grouper.uptraining.methods.distill import Distill
from grouper.uptraining.methods.method import TrainingMethod
from grouper.uptraining.published.continued import Continued
from grouper.uptraining.published.learned_sums import LearnedSums
from grouper.uptraining.published.perturbed import Perturbed
from grouper.uptraining.published.redealing import Redealing

METHODS: Registry[TrainingMethod] = Registry(
    "way to train",
    Distill(),
    Continued(),
    LearnedSums(),
    LearnedSums("wgqa-column", kind="column"),
    LearnedSums("wgqa-row", kind="row"),
    Redealing(),
    Redealing("dgqa-diff", difference=True),
    Perturbed(),
)

__all__ = ["METHODS", "TrainingMethod"]
