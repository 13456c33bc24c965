"""Choice between loading a model into memory and streaming it from disk."""

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.families.architecture import Architecture
from grouper.model.auto import check_transformers
from grouper.model.memory import free_memory
from grouper.running.in_memory import InMemoryModel
from grouper.running.layers import Layers
from grouper.running.streamed import StreamedModel


def open_model(checkpoint: Checkpoint, device: str = "cpu", memory: int | None = None) -> Layers:
    """Load the model into memory, in float32, if it fits `memory` (bytes; default: half of free memory) and the GPU
    with a fifth to spare. Larger models are streamed layer by layer from disk."""
    check_transformers(Architecture.of(checkpoint.config).family)
    room = free_memory() / 2 if memory is None else memory
    if "cuda" in device:
        import torch

        room = min(room, torch.cuda.mem_get_info(device)[0] / 1.2)
    return InMemoryModel(checkpoint, device) if 4 * checkpoint.parameters <= room else StreamedModel(checkpoint, device)
