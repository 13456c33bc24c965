"""How much memory there is to work with."""

import psutil
import torch

SHARE = 0.75  # of what is free; the rest is for activations and sums


def free_memory() -> float:
    """Bytes of main memory that are free or hold what can be read again."""
    return float(psutil.virtual_memory().available)


def memory_limits(device: str) -> dict[int | str, int]:
    """For accelerate: bytes that the model may take of the GPU and of main memory."""
    limits: dict[int | str, int] = {"cpu": int(free_memory() * SHARE)}
    if "cuda" not in device:
        return limits
    return {torch.device(device).index or 0: int(torch.cuda.mem_get_info(device)[0] * SHARE), **limits}
