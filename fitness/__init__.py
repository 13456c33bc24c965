"""What a grouping costs. A fitness is a function (Attention, InputMoments, part, device) -> LayerFitness in a file of its own, and a line here."""

from collections.abc import Callable

from fitness.activation import activation_fitness
from fitness.base import LayerFitness
from fitness.calibrated import calibrated_errors
from fitness.pairwise import PairwiseFitness
from fitness.spectral import SpectralFitness, spectral_fitness
from fitness.weight import mean_error, weight_fitness
from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.layout import LayerLayout
from grouper.merging import mean

FITNESSES: dict[str, Callable[..., LayerFitness]] = {
    "weight": weight_fitness,
    "activation": activation_fitness,
    "spectral": spectral_fitness,
}
OWN_MERGE = {"weight": "mean", "activation": "mean", "spectral": "spectral"}  # the merge whose error a fitness is


def layout_error(
    name: str, attention: Attention, layout: LayerLayout, inputs: InputMoments, normalised: bool = True
) -> float:
    """The error of one layer under the mean merge by fitness `name`, for layouts that no table scores: query heads read heads that theirs are
    not merged into, or share a projection."""
    merged = mean.merge(attention, layout)
    if name == "spectral":
        return sum(calibrated_errors(attention, merged, layout, inputs))
    return mean_error(attention, merged, layout, inputs.second if name == "activation" else None, normalised)


__all__ = [
    "FITNESSES",
    "OWN_MERGE",
    "LayerFitness",
    "PairwiseFitness",
    "SpectralFitness",
    "activation_fitness",
    "calibrated_errors",
    "layout_error",
    "mean_error",
    "spectral_fitness",
    "weight_fitness",
]
