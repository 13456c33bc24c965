"""What a way to find groupings is."""

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

    budgets: its fronts go through stage 2. baseline: to be compared with, exported only by number. parts: tables that
    it needs besides the fitness's own: of "k" or "v" alone, of "q", or what "pairs" of KV heads say. needs_weights: it
    needs the layer's weights and inputs. needs_text: it needs calibration text. aligned: candidate i of every layer
    together make one layout. judged: its steps may be judged by the merged model's loss.
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
        """Whether equal groups are among what it looks for."""
        return False

    def check(self, architecture: Architecture) -> None:
        """Raise GrouperError where it cannot take this model."""
        return

    @abstractmethod
    def search_layer(
        self, task: LayerTask, rng: np.random.Generator, genetic: GeneticOptions, report: Progress = no_progress
    ) -> list[Candidate]:
        """Layouts of one layer, at best one for every number of KV heads. All chance comes from `rng`."""
