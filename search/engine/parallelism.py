"""Number of layers searched in parallel, and of threads for each."""

import os
import re

from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.model.memory import free_memory
from grouper.ranks import ranks_here

WORTH_A_PROCESS = 5e7  # numbers in all q projections; below, starting processes takes longer than the search
COPIES = 20  # memory of a layer's factors and tables together, as copies of its q in float64
ON_A_GPU = 16  # processes that keep one GPU busy
FOR_LAYERS = 0.6  # share of a GPU's memory; the rest is for the model, calibrated meanwhile, and for the processes' own


def parsed_jobs(text: str, architecture: Architecture, device: str) -> int:
    """Number of processes from --jobs: "auto", or a number from 1 on. auto: one process per core, as many as fit in
    memory; on a GPU, as many as keep it busy; one for a small model. Raises GrouperError."""
    if text != "auto":
        if not re.fullmatch("0*[1-9][0-9]{0,3}", text, re.ASCII):
            raise GrouperError(f"--jobs {text}: expected auto, or a number from 1 to 9999")
        return int(text)
    a = architecture
    q = a.query_heads * a.head_dim * a.hidden_size
    if q * a.layers < WORTH_A_PROCESS:
        return 1
    held = free_memory() / 2 / ranks_here()
    most = cores()
    if "cuda" in device:
        import torch

        held, most = torch.cuda.mem_get_info(device)[0] * FOR_LAYERS, min(most, ON_A_GPU)
    return max(1, min(most, a.layers, int(held // (COPIES * 8 * q))))


def cores() -> int:
    """Number of CPU cores that this process may use: its share if several ranks run on this machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // ranks_here())
