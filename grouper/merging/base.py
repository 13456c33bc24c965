"""What a merge is: several KV heads become one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from grouper.attention import Attention
from grouper.calibration.input_moments import InputMoments
from grouper.layout import LayerLayout
from grouper.registry import Entry


@dataclass(frozen=True)
class Merge(Entry, ABC):
    """An entry of MERGES. A subclass's fields are its parameters.

    paper: where it comes from.
    exact_in: behind which norms on q and k (a Family's `qk_norm`) the exported model does what the closed form says.
    expensive: whether a layer takes so long that it is kept on disk rather than merged again for the self-test.
    behind_norms: by `qk_norm`, what it does instead where it is not exact, for the table of families.
    """

    paper: ClassVar[str]
    exact_in: ClassVar[tuple[str | None, ...]] = (None,)
    expensive: ClassVar[bool] = False
    behind_norms: ClassVar[dict[str, str]] = {}

    @abstractmethod
    def merge(self, attention: Attention, layout: LayerLayout, inputs: InputMoments) -> Attention:
        """The layer with the layout's KV heads in its order, in the dtype that came in.

        inputs: what is known of the layer's inputs; some merges do without. q and o may change, too: a free change of
        basis folds into them. Raises GrouperError for layouts that it cannot follow.
        """

    def before_refinement(self) -> "Merge":
        """The form of it that refinement starts from."""
        return self
