"""Fitnesses: estimates of the damage that a grouping does, made without running the model. To add one, write a file
here with a subclass of Fitness and add an entry below."""

from typing import TYPE_CHECKING

from grouper.lazy import lazily
from grouper.registry import Named, Registry

if TYPE_CHECKING:
    from fitness.base import Fitness as Fitness
    from fitness.base import LayerFitness as LayerFitness
    from fitness.calibrated import calibrated_errors as calibrated_errors
    from fitness.pairwise import PairwiseFitness as PairwiseFitness

FITNESSES: "Registry[Fitness]" = Registry(
    "fitness",
    Named("weight", "fitness.weight.Weight"),
    Named("activation", "fitness.activation.Activation"),
    Named("spectral", "fitness.spectral.Spectral"),
)

MODULES = {
    "Fitness": "fitness.base",
    "LayerFitness": "fitness.base",
    "PairwiseFitness": "fitness.pairwise",
    "calibrated_errors": "fitness.calibrated",
}
__all__ = ["FITNESSES", *MODULES]
__getattr__ = lazily(__name__, MODULES)
