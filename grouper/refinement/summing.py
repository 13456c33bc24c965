"""Sum of all ranks' gradients, which travels while the backward pass still runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grouper.ranks import Ranks


class SummedGradients:
    """Replace the gradients of `tensors` by the sums over ranks.

    dtype: of what travels; on GPUs bfloat16, in which a step's products are computed, too. Sums are taken by the
    communication library, in float32 inside of a GPU's switch or ring where it does so.
    """

    def __init__(self, tensors: Sequence[Tensor], ranks: Ranks, dtype: torch.dtype):
        self.tensors, self.ranks, self.dtype = tensors, ranks, dtype
        self.travelling: list[tuple[Tensor, Tensor, Any]] = []  # a tensor, what is summed, the work to wait for

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """Send each gradient as soon as it is there; at the end all are sums. All ranks have to compute the same step,
        so that their gradients come in the same order."""
        self.travelling.clear()  # of a step that failed
        hooks = [tensor.register_post_accumulate_grad_hook(self._send) for tensor in self.tensors]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._take_up()

    def afterwards(self) -> None:
        """The same once a backward pass has run, in a fixed order: for steps that a rank has no part in."""
        for tensor in self.tensors:
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
            self._send(tensor)
        self._take_up()

    def _send(self, tensor: Tensor) -> None:
        gradient = tensor.grad
        assert gradient is not None
        sent = gradient.to(self.dtype)  # the gradient itself where it has that type
        self.travelling.append((gradient, sent, self.ranks.adding_up(sent)))

    def _take_up(self) -> None:
        for gradient, sent, work in self.travelling:
            work.wait()
            if sent is not gradient:
                gradient.copy_(sent)
        self.travelling.clear()
