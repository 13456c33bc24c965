"""One layer to be searched: its tables, and for methods that need more, its weights and moments of its inputs."""

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

Judge = Callable[[np.ndarray], np.ndarray]  # labels [n, G] -> [n], what the merged model loses


@dataclass
class LayerTask:
    """Search task of one layer.

    fitness: the entry. tables: of the layer, by that fitness. read: reads the layer's weights and the moments of its
    inputs, where a method asks for them. parts: tables of "k", "v" or "q" alone, or of "pairs". judges: by method, for
    searches that are steered by the merged model's loss. progress: notes of a genetic search on each generation: how
    many groupings it has scored, and the mean of the least errors at all KV-head counts, as it sees them.
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
        """Partitions of KV heads as layouts: every query head follows the KV head that it reads."""
        n = self.queries_per_kv_head
        return [Candidate(LayerLayout.from_labels(p.labels.tolist(), n), p.error) for p in partitions]

    def layout_error(self, layout: LayerLayout) -> float:
        """The error, by this fitness, of any layout under the mean merge."""
        return self.fitness.error_of_any_layout(self.attention, layout, self.inputs)
