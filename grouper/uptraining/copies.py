"""Copy of the weights in training, kept on the GPU if it has room, else in main memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from grouper.layout import HeadLayout
from grouper.uptraining.student import Student

ROOM = 3  # free memory on the GPU must be this many times the copy's size


class Copy:
    """Weights, the method's buffers, and the layout. parameters: those in training, of which each rank may hold a
    part."""

    def __init__(self, student: Student, parameters: Sequence[Tensor]):
        size = sum(p.nbytes for p in parameters)
        gpu = bool(parameters) and parameters[0].is_cuda
        here = not gpu or ROOM * size < torch.cuda.mem_get_info(parameters[0].device)[0]
        self.tensors = [p.detach().clone() if here else p.detach().cpu() for p in parameters]
        self.buffers = {name: buffer.detach().clone() for name, buffer in student.buffers().items()}
        self.layout = student.layout.to_json()

    @torch.no_grad()
    def put_back(self, student: Student, parameters: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(parameters, self.tensors):
            parameter.copy_(tensor)
        for name, buffer in student.buffers().items():
            buffer.copy_(self.buffers[name])
        for attention, one in zip(student.attentions, HeadLayout.from_json(self.layout).layers):
            attention.layout = one
