"""What a search asks of a fitness: the error of one layer when its KV heads are grouped so or so."""

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
    """One layer, scored from tables made once; never touches the weights again. heads: KV heads of the layer before
    regrouping (G)."""

    @property
    def heads(self) -> int: ...

    def group_errors(self, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n]: the error of each group of heads (ascending tuples) merged into one; 0 for one head alone."""

    def errors(self, labels: np.ndarray) -> np.ndarray:
        """labels: [n, G] group of each head, any names. Returns [n], the layer's error: the sum over groups."""


class LayerFitness(LayerErrors, Protocol):
    """Tables of one layer for a search.

    surrogate: an error that follows from pairs of heads and group sizes alone, by which searches choose their moves.
    screen: a cheaper form of the error, by which they choose among what they found. Both are the fitness itself where
    it is of that form, or cheap. of_k: K's part of the error, for people to look at; None where it is not known.
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

    own_merge: the merge in MERGES whose error it is. needs_moments: whether it asks what enters the layer; where it
    does not, `inputs` may be None. exact_in: behind which norms on q and k (a Family's `qk_norm`) it is the error of
    what is exported.
    """

    own_merge: ClassVar[str]
    paper: ClassVar[str]
    needs_moments: ClassVar[bool] = True
    exact_in: ClassVar[tuple[str | None, ...]] = (None, "head", "all")

    @abstractmethod
    def tables(
        self, attention: Attention, inputs: InputMoments | None, part: str = "kv", device: str = "cpu"
    ) -> LayerFitness:
        """One layer's tables. part: "kv", or the error of "k" or "v" alone. device: where they are made."""

    @abstractmethod
    def pairs(self, attention: Attention, inputs: InputMoments | None, part: str = "kv") -> PairwiseFitness:
        """What pairs of heads alone say, whatever the error is: of "kv", or of "q" for methods that share queries."""

    @abstractmethod
    def error_of_any_layout(self, attention: Attention, layout: LayerLayout, inputs: InputMoments | None) -> float:
        """The error, merged by the mean, of layouts where a query head changes its KV head or shares a projection."""

    def given(self, inputs: InputMoments | None) -> InputMoments:
        """Moments of the inputs of the layer. Raises GrouperError where there are none."""
        if inputs is None:
            raise GrouperError(f"the {self.name} fitness asks what enters the layer: give it moments of the inputs")
        return inputs


def kinds_of(part: str, allowed: Sequence[str] = tuple(PARTS)) -> tuple[Part, ...]:
    """The projections that `part` names. Raises GrouperError for one that the fitness does not know."""
    if part not in allowed:
        raise GrouperError(f"unknown part {part!r} of a layer: expected one of {', '.join(allowed)}")
    return PARTS[part]
