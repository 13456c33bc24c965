"""GQA's own recipe (arXiv 2305.13245): from the mean of neighbouring heads, go on as in pre-training, on its text and
with its loss, for 5% of its steps."""

from dataclasses import dataclass

from grouper.uptraining.methods.method import TrainingMethod
from grouper.uptraining.options import Losses


@dataclass(frozen=True)
class Continued(TrainingMethod):
    """How many tokens 5% are, only the one who trained the original knows: say `tokens`."""

    name: str = "gqa"
    paper = "GQA, arXiv 2305.13245"
    losses = Losses(kl=0.0, hidden=0.0, causal=1.0)
    from_mean = True
