"""Parameters that several ranks hold in parts (FSDP), as wholes: read and written by name like any others."""

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """On the CPU; of a sharded one all ranks have to ask."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> Tensor:
    """Put a whole value into a tensor, which may be sharded."""
    mesh, placements = getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(tensor.device), mesh, placements)
    tensor.copy_(value)
    return tensor
