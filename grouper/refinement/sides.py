"""The two streams that refinement carries: the original's, and that of the regrouped model, which has the errors of the
layers before."""

import torch
from torch import Tensor

from grouper.model.site import Place
from grouper.running.batch import Batch
from grouper.running.layers import Layers
from grouper.running.walk import Step, Walk, room


class Sides:
    """Both streams of examples of one length, at one layer after the other.

    own, ours: the original's and the regrouped model's step. wanted: [n, tokens, D], what is wanted behind the
    attention at hand; where whole layers are matched it is the original's next stream, in the place of the one before.
    added: what the original's adds to the stream, summed over the parts that errors are taken on; of_first: of the
    first part.
    """

    own: Step
    ours: Step
    wanted: Tensor
    added: float
    of_first: float

    def __init__(
        self, model: Layers, batch: Tensor | Batch, size: int, device: str, whole_layers: bool, apart: bool = True
    ):
        """size: examples that pass a layer at a time. whole_layers: whether these are matched, or attentions. apart:
        whether layers before the one at hand are regrouped; else both streams are the original's."""
        self.walk = Walk(model, batch, size, device).start()
        self.other = self.walk.copy() if apart else self.walk
        self.tokens, self.whole_layers = self.walk.batch.numel(), whole_layers
        self.wanted = torch.empty(0)

    def at(self, place: Place) -> "Sides":
        """Both streams are at this layer."""
        self.own, self.ours = self.walk.at(place), self.other.at(place)
        if self.whole_layers:
            self.wanted = self.walk.stream
        elif self.wanted.shape != self.walk.stream.shape:
            self.wanted = room(self.walk.stream.shape, self.walk.device)
        return self

    @property
    def parts(self) -> list[slice]:
        return self.walk.parts

    def wanted_of(self, number: int) -> Tensor:
        """Of a part, on the device."""
        return self.wanted[self.parts[number]].to(self.walk.device)

    def given_of(self, number: int) -> Tensor:
        """What enters the layer in the regrouped model."""
        return self.other.stream[self.parts[number]].to(self.walk.device)
