"""Distillation from the original: what is trained is the shared heads and all other weights. The default."""

from dataclasses import dataclass

from grouper.uptraining.methods.method import TrainingMethod


@dataclass(frozen=True)
class Distill(TrainingMethod):
    name: str = "distill"
    paper = "ours; KL as in Hinton et al., arXiv 1503.02531"
