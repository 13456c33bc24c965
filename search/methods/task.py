"""One layer to be searched: its tables, and for methods that need more, its weights and what is known of its inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fitness import LayerFitness, layout_error
from grouper.attention import Attention
from grouper.calibration.moments import InputMoments
from grouper.layout import LayerLayout

Judge = Callable[[np.ndarray], np.ndarray]  # labels [n, G] -> [n], what the merged model loses


@dataclass
class LayerTask:
    """fitness: its name and its tables. parts: tables of "k", "v" or "q" alone. attention, inputs: where a method asks for them. judges: by
    method, for searches that are steered by the merged model's loss."""

    name: str
    fitness: LayerFitness
    parts: dict[str, LayerFitness] = field(default_factory=dict)
    attention: Attention | None = None
    inputs: InputMoments | None = None
    normalised: bool = True
    judges: dict[str, Judge] = field(default_factory=dict)

    @property
    def query_heads(self) -> int:
        return self.attention.query_heads

    @property
    def queries_per_kv_head(self) -> int:
        return self.attention.query_heads // self.attention.kv_heads

    def layout_error(self, layout: LayerLayout) -> float:
        """The error, by this fitness, of any layout under the mean merge."""
        return layout_error(self.name, self.attention, layout, self.inputs, self.normalised)
