"""Memory that a training needs at least, known before anything is loaded."""

import torch

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.model.memory import free_memory
from grouper.uptraining.options import UptrainOptions

WEIGHT, TRAINED = 4, 12  # bytes per parameter: float32; its gradient and AdamW's two moments
SPARE = 1.1  # margin for passes and the teacher


def least_bytes(folder: Checkpoint, options: UptrainOptions) -> int:
    """Bytes of weights, gradients and optimizer moments; activations come on top. folder: the export to train."""
    trained = folder.parameters
    if options.train == "lora":
        matrices = (info.shape for info in folder.tensors.values() if len(info.shape) == 2)
        trained = sum(options.lora_rank * (rows + columns) for rows, columns in matrices)
    return WEIGHT * folder.parameters + TRAINED * trained


def check_memory(folder: Checkpoint, options: UptrainOptions, device: str, shared_by: int = 1) -> None:
    """Raise GrouperError if the training cannot fit into memory. shared_by: number of processes that each hold a
    part."""
    needed = SPARE * least_bytes(folder, options) / shared_by
    gpu = "cuda" in device
    free = torch.cuda.mem_get_info(device)[0] if gpu else free_memory()
    if needed <= free:
        return
    where = f"{device}, which has {free / 1e9:.0f} GB free" if gpu else f"this machine, which has {free / 1e9:.0f} GB"
    what, cure = "adapters", "a device with more"
    if options.train == "full":
        what, adapters = "all", least_bytes(folder, UptrainOptions(train="lora"))
        cure = f"`train=lora` ({adapters / 1e9:.0f} GB)"
    many = ", or share it among GPUs by accelerate launch --use_fsdp" if gpu else ""
    takes = f"training {what} of {folder.parameters / 1e9:.1f}B parameters takes {needed / 1e9:.0f} GB at least"
    raise GrouperError(f"{takes}, too much for {where}: take {cure}{many}")
