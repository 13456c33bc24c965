"""GQA's own recipe (arXiv 2305.13245): starting from the mean of neighbouring heads, continue pre-training on the
original text and loss for 5% of the original steps."""

from dataclasses import dataclass

from grouper.uptraining.methods.method import TrainingMethod
from grouper.uptraining.options import Losses


@dataclass(frozen=True)
class Continued(TrainingMethod):
    """GQA's recipe. Set `tokens` to 5% of the original training, because only the original's authors know that
    number."""

    name: str = "gqa"
    paper = "GQA, arXiv 2305.13245"
    losses = Losses(kl=0.0, hidden=0.0, causal=1.0)
    from_mean = True
