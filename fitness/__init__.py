"""What a grouping costs. A fitness is a function (Attention, InputMoments) -> LayerFitness in a file of its own, and a line here."""

from collections.abc import Callable

from fitness.activation import activation_fitness
from fitness.base import LayerFitness
from fitness.pairwise import PairwiseFitness
from fitness.spectral import SpectralFitness, spectral_fitness
from fitness.weight import weight_fitness

FITNESSES: dict[str, Callable[..., LayerFitness]] = {
    "weight": weight_fitness,
    "activation": activation_fitness,
    "spectral": spectral_fitness,
}
OWN_MERGE = {"weight": "mean", "activation": "mean", "spectral": "spectral"}  # the merge whose error a fitness is

__all__ = [
    "FITNESSES",
    "OWN_MERGE",
    "LayerFitness",
    "PairwiseFitness",
    "SpectralFitness",
    "activation_fitness",
    "spectral_fitness",
    "weight_fitness",
]
