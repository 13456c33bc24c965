"""Streams for tests of refinement, without a model."""

from types import SimpleNamespace

import torch
from torch import Tensor

from grouper.refinement.sides import Sides
from grouper.running.batch import Batch
from grouper.running.stub_layers import Arguments
from grouper.running.walk import Walk

SITE = SimpleNamespace(index=0, name="layer 0", stack=0, layer=0)


def toy_sides(
    original: Tensor,
    regrouped: Tensor,
    size: int,
    arguments: list[Arguments] | Arguments = ((), {}),
    mask: Tensor | None = None,
) -> Sides:
    """original, regrouped: [n, tokens, D]. size: examples of a part. arguments: of one example for all, or of each
    part. mask: [n, tokens]."""

    def walk(stream: Tensor) -> Walk:
        made = Walk.__new__(Walk)
        made.stream, made.mask, made.device, made.entered = stream, mask, "cpu", 0
        made.batch = Batch.of(torch.zeros(stream.shape[:2], dtype=torch.long))
        made.parts = [slice(i, i + size) for i in range(0, len(stream), size)]
        made.alike = not isinstance(arguments, list)
        made.arguments = [[arguments] if made.alike else arguments]
        return made

    sides = Sides.__new__(Sides)
    sides.walk, sides.other, sides.whole_layers = walk(original), walk(regrouped), False
    sides.tokens, sides.wanted = sides.walk.batch.numel(), torch.full_like(original, float("nan"))
    return sides.at((SITE,))
