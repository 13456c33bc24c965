"""Distillation from the original. The shared heads and all other weights are trained. This is the default method."""

from dataclasses import dataclass

from grouper.uptraining.methods.method import TrainingMethod


@dataclass(frozen=True)
class Distill(TrainingMethod):
    name: str = "distill"
    paper = "ours; KL as in Hinton et al., arXiv 1503.02531"
