"""Interface of a method that finds groupings."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grouper.families.architecture import Architecture
from grouper.progress import Progress, no_progress
from grouper.registry import Entry
from search.methods.candidate import Candidate
from search.methods.task import LayerTask
from search.options import GeneticOptions


@dataclass(frozen=True)
class Method(Entry, ABC):
    """An entry of METHODS. A subclass's fields are its parameters.

    budgets: its groupings go through stage 2. baseline: it serves for comparison, and its layouts are exported only by
    number. parts: further tables that it needs: of "k" or "v" alone, of "q", or the pairwise form for KV heads
    ("pairs"). needs_weights: it needs the layer's weights and the moments of its inputs. needs_text: it needs
    calibration text. aligned: the i-th candidates of all layers together make one layout. judged: its steps may be
    judged by the merged model's loss.
    """

    paper: ClassVar[str]
    budgets: ClassVar[bool] = True
    baseline: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ()
    needs_weights: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    aligned: ClassVar[bool] = False
    judged: ClassVar[bool] = False

    @property
    def gives_equal_groups(self) -> bool:
        """Whether it looks for equal groups, too."""
        return False

    def check(self, architecture: Architecture) -> None:
        """Raise GrouperError if the method cannot take this model."""
        return

    def judged_groupings(self, heads: int, genetic: GeneticOptions) -> int:
        """Number of groupings of one layer that are judged by the merged model's loss, if steps are judged by it."""
        return 0

    @abstractmethod
    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """Layouts of one layer, preferably one for every number of KV heads. All random numbers come from `rng`."""
