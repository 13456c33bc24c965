"""Two parallel residual streams: the original's, and that of the regrouped model with the errors of its layers so
far."""

import torch
from torch import Tensor

from grouper.families.sites import Place
from grouper.running.batch import Batch
from grouper.running.layers import Layers
from grouper.running.walk import Step, Walk, room


class Sides:
    """Both streams of examples of one length.

    own, ours: step of the original and of the regrouped model. wanted: [n, tokens, D], target after the attention; if
    whole layers are matched, it is the next stream of the original and takes its place. added: relative size of the
    original's addition to the stream, summed over the parts that errors are measured on. of_first: the same for the
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
        """Start both streams of a text. size: examples per part. whole_layers: whether whole layers are matched, or
        attentions. apart: whether earlier layers are regrouped; else both streams are the original's."""
        self.walk = Walk(model, batch, size, device).start()
        self.other = self.walk.copy() if apart else self.walk
        self.tokens, self.whole_layers = self.walk.batch.numel(), whole_layers
        self.wanted = torch.empty(0)

    def at(self, place: Place) -> "Sides":
        """Move on to this layer."""
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
        """Target of a part, on the device."""
        return self.wanted[self.parts[number]].to(self.walk.device)

    def given_of(self, number: int) -> Tensor:
        """Regrouped stream of a part at the layer, on the device."""
        return self.other.stream[self.parts[number]].to(self.walk.device)
