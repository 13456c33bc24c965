"""Parameters that several ranks hold in parts (FSDP), read and written by name as whole tensors."""

import torch
from torch import Tensor


def whole(tensor: Tensor, kept: bool = True) -> Tensor:
    """Whole tensor on the CPU. All ranks must call this for a sharded tensor. kept: whether this rank needs it; if not,
    it gets an empty tensor, because a machine's memory need not hold the model once for each of its ranks."""
    tensor = tensor.detach()
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.cpu() if kept else torch.empty(0)


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> Tensor:
    """Copy a whole value into a tensor, which may be sharded."""
    mesh, placements = getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(tensor.device), mesh, placements)
    tensor.copy_(value)
    return tensor
