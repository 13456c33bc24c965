"""How many layers are searched at a time, and with how many threads each."""

import os
import re

from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.model.memory import free_memory
from grouper.ranks import ranks_here

WORTH_A_PROCESS = 5e7  # numbers in all q projections: below, starting processes takes longer than the search
COPIES = 20  # of a layer's q in float64 that its factors and tables take together
ON_A_GPU = 16  # processes that keep one busy
FOR_LAYERS = 0.6  # of a GPU's memory: the model, which is calibrated meanwhile, and the processes themselves need some


def parsed_jobs(text: str, architecture: Architecture, device: str) -> int:
    """ "auto", or a number from 1 on. auto: one process a core, as many as memory holds; on a GPU, as many as keep it
    busy; one where the model is small. Raises GrouperError."""
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
    """That this process may use, its share of them where several ranks run on this machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // ranks_here())
