"""Parameters that several ranks hold in parts (FSDP), read and written by name as whole tensors."""

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """Whole tensor on the CPU. All ranks must call this for a sharded tensor."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> Tensor:
    """Copy a whole value into a tensor, which may be sharded."""
    mesh, placements = getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(tensor.device), mesh, placements)
    tensor.copy_(value)
    return tensor
