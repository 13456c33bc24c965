"""What a grouping costs. A new fitness is a file here with a subclass of Fitness, and an entry below."""

from fitness.activation import Activation
from fitness.base import Fitness, LayerFitness
from fitness.calibrated import calibrated_errors
from fitness.pairwise import PairwiseFitness
from fitness.spectral import Spectral
from fitness.weight import Weight
from grouper.registry import Registry

FITNESSES: Registry[Fitness] = Registry("fitness", Weight(), Activation(), Spectral())

__all__ = ["FITNESSES", "Fitness", "LayerFitness", "PairwiseFitness", "calibrated_errors"]
