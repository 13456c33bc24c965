"""Interface of a merge, which turns several KV heads into one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from grouper.registry import Entry


@dataclass(frozen=True)
class Merge(Entry, ABC):
    """An entry of MERGES. Fields of a subclass are its parameters.

    paper: its source. exact_in: kinds of norms on q and k (a Family's `qk_norm`) with which the exported model computes
    exactly what the closed form predicts. expensive: cache merged layers on disk instead of recomputing them for the
    self-test. behind_norms: by `qk_norm`, its method in families where it is not exact, for the table of families.
    """

    paper: ClassVar[str]
    exact_in: ClassVar[tuple[str | None, ...]] = (None,)
    expensive: ClassVar[bool] = False
    behind_norms: ClassVar[dict[str, str]] = {}

    @abstractmethod
    def merge(self, attention: Attention, layout: LayerLayout, inputs: InputMoments) -> Attention:
        """Merge a layer: it gets the layout's KV heads in the layout's order, in the original dtype.

        inputs: moments of the layer's inputs; some merges ignore them. q and o may change too, as a change of basis is
        folded into them. Raises GrouperError for layouts that the merge does not support.
        """

    @property
    def key(self) -> dict[str, object]:
        """Name and parameters, by which stored refinements are found again; without those that older versions lacked,
        where they are not used."""
        return {"name": self.name, **self.parameters}

    def before_refinement(self) -> "Merge":
        """Variant of the merge that refinement starts from."""
        return self
