"""Sum of all ranks' gradients, sent while the backward pass is still running."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grouper.ranks import Ranks


class SummedGradients:
    """Replace the gradients of `tensors` by their sums over ranks.

    dtype: type in which gradients are sent; on GPUs bfloat16, as for the products of a step. The communication library
    computes the sums, in float32 inside a GPU's switch or ring if it supports that.
    """

    def __init__(self, tensors: Sequence[Tensor], ranks: Ranks, dtype: torch.dtype):
        self.tensors, self.ranks, self.dtype = tensors, ranks, dtype
        self.travelling: list[tuple[Tensor, Tensor, Any]] = []  # a tensor, its gradient, the pending operation

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """Send each gradient as soon as it is computed; at the end of the block all are sums. All ranks must compute
        the same step, so that their gradients come in the same order."""
        self.travelling.clear()  # left over from a step that failed
        hooks = [tensor.register_post_accumulate_grad_hook(self._send) for tensor in self.tensors]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._take_up()

    def afterwards(self) -> None:
        """Sum the gradients after a backward pass, in a fixed order. For steps in which some ranks have no part."""
        for tensor in self.tensors:
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
            self._send(tensor)
        self._take_up()

    def _send(self, tensor: Tensor) -> None:
        gradient = tensor.grad
        assert gradient is not None
        sent = gradient.to(self.dtype)  # the gradient itself if it has that type
        self.travelling.append((gradient, sent, self.ranks.adding_up(sent)))

    def _take_up(self) -> None:
        for gradient, sent, work in self.travelling:
            work.wait()
            if sent is not gradient:
                gradient.copy_(sent)
        self.travelling.clear()
