"""Search task of one layer: its tables, and, for methods that need them, its weights and the moments of its inputs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fitness import Fitness, LayerFitness
from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from search.methods.candidate import Candidate
from search.optimise.partition import Partition

Judge = Callable[[np.ndarray], np.ndarray]  # labels [n, G] -> [n], loss of the merged model


@dataclass
class LayerTask:
    """Search task of one layer.

    fitness: entry of FITNESSES. tables: the layer's, by that fitness. read: function that reads the layer's weights and
    the moments of its inputs, for methods that need them. parts: tables of "k", "v" or "q" alone, or of "pairs".
    judges: by method, for searches steered by the merged model's loss. progress: a genetic search's notes on each
    generation: number of groupings scored so far, and mean over all KV-head counts of the least error found, in the
    form that the search uses.
    """

    fitness: Fitness
    tables: LayerFitness
    read: Callable[[], tuple[Attention, InputMoments]]
    queries_per_kv_head: int = 1
    parts: dict[str, LayerFitness] = field(default_factory=dict)
    judges: dict[str, Judge] = field(default_factory=dict)
    progress: list[tuple[int, float]] = field(default_factory=list)

    @cached_property
    def weights(self) -> tuple[Attention, InputMoments]:
        """The layer's weights and the moments of its inputs, read once."""
        return self.read()

    @property
    def attention(self) -> Attention:
        return self.weights[0]

    @property
    def inputs(self) -> InputMoments:
        return self.weights[1]

    def candidates(self, partitions: Iterable[Partition]) -> list[Candidate]:
        """Layouts from partitions of KV heads: every query head follows its KV head."""
        n = self.queries_per_kv_head
        return [Candidate(LayerLayout.from_labels(p.labels.tolist(), n), p.error) for p in partitions]

    def layout_error(self, layout: LayerLayout) -> float:
        """Error of any layout by this fitness, under the mean merge."""
        return self.fitness.error_of_any_layout(self.attention, layout, self.inputs)
