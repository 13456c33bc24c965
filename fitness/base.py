"""Interface of a fitness: the error of one layer under a grouping of its KV heads."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from fitness.pairwise import PairwiseFitness
from grouper.attention import Attention, Part
from grouper.calibration.input_moments import InputMoments
from grouper.errors import GrouperError
from grouper.layout import LayerLayout
from grouper.registry import Entry

PARTS: dict[str, tuple[Part, ...]] = {"kv": ("k", "v"), "k": ("k",), "v": ("v",), "q": ("q",)}


class LayerErrors(Protocol):
    """Errors of one layer, from tables that are made once; the weights are not read again. heads: number of KV heads
    before regrouping (G)."""

    @property
    def heads(self) -> int: ...

    def group_errors(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n]: error of each group (an ascending tuple of heads) when it is merged into one KV head; 0 for a group of
        one."""

    def errors(self, labels: np.ndarray) -> np.ndarray:
        """Errors of the whole layer, [n]: the sum over groups. labels: [n, G] group of each head; any labels will
        do."""


class LayerFitness(LayerErrors, Protocol):
    """Tables of one layer for a search.

    surrogate: an error computed from pairs of heads and group sizes alone, with which searches choose their moves.
    screen: a cheaper form of the error, with which searches shortlist the groupings they found. Both are the fitness
    itself where it has that form or is cheap. of_k: K's part of the error, for reports; None where it is not known.
    """

    @property
    def of_k(self) -> LayerErrors | None: ...

    @property
    def surrogate(self) -> PairwiseFitness: ...

    @property
    def screen(self) -> LayerErrors: ...


@dataclass(frozen=True)
class Fitness(Entry, ABC):
    """An entry of FITNESSES. A subclass's other fields are its parameters.

    own_merge: the merge in MERGES whose error this is. needs_moments: whether it needs the moments of the layer's
    inputs; if not, `inputs` may be None. exact_in: norms on q and k (values of a Family's `qk_norm`) with which it is
    the exact error of the exported model.
    """

    own_merge: ClassVar[str]
    paper: ClassVar[str]
    needs_moments: ClassVar[bool] = True
    exact_in: ClassVar[tuple[str | None, ...]] = (None, "head", "all")

    @abstractmethod
    def tables(
        self, attention: Attention, inputs: InputMoments | None, part: str = "kv", device: str = "cpu"
    ) -> LayerFitness:
        """Make the tables of one layer. part: "kv", or the error of "k" or "v" alone. device: where the tables are
        computed."""

    @abstractmethod
    def pairs(self, attention: Attention, inputs: InputMoments | None, part: str = "kv") -> PairwiseFitness:
        """Pairwise form of the error, whatever the fitness itself is. part: "kv", or "q" for methods that share
        queries."""

    @abstractmethod
    def error_of_any_layout(self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None) -> float:
        """Error under the mean merge of a layout in which a query head reads another KV head than before, or shares its
        query projection."""

    def given(self, inputs: InputMoments | None) -> InputMoments:
        """The moments of the layer's inputs. Raises GrouperError if there are none."""
        if inputs is None:
            raise GrouperError(f"the {self.name} fitness asks what enters the layer: give it moments of the inputs")
        return inputs


def kinds_of(part: str, allowed: Sequence[str] = tuple(PARTS)) -> tuple[Part, ...]:
    """The projections that `part` names. Raises GrouperError for a part that the fitness does not know."""
    if part not in allowed:
        raise GrouperError(f"unknown part {part!r} of a layer: expected one of {', '.join(allowed)}")
    return PARTS[part]
