"""Settings of the machine: device, memory budget, and receivers of messages and progress."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from grouper.errors import GrouperError
from grouper.option_fields import option
from grouper.progress import Progress, no_progress
from grouper.ranks import Ranks, own_gpu, started_ranks

Tell = Callable[[str], None]
NO_FLOAT64 = "Apple's GPUs (mps) have no float64, in which heads are merged: --device cpu computes on the processor"


def no_message(line: str) -> None:
    """Ignore the message."""


def bytes_read(text: str) -> int:
    from grouper.model.memory import parsed_bytes

    return parsed_bytes(text, "`memory`")


@dataclass(frozen=True)
class Machine:
    """Settings of the machine. device: name as in torch, or "auto" for this process's GPU if there is one, else the
    CPU. memory: memory budget for the model in bytes; a larger model is streamed. tell: receives messages. progress:
    receives the number of steps done. Raises GrouperError if the device is not usable."""

    device: str = option("auto", "Device: cpu, cuda, or auto for cuda if available, else cpu.", panel="Machine")
    memory: int | None = option(
        None,
        "Memory budget for the model, e.g. 8GB (default: half of free memory). Larger models are streamed.",
        panel="Machine",
        metavar="SIZE",
        read=bytes_read,
    )
    tell: Tell = no_message
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", usable(self.device))

    @cached_property
    def ranks(self) -> Ranks:
        """Processes that work together."""
        return started_ranks()


def usable(device: str) -> str:
    """Device to use: the given one, or the one that "auto" selects. Raises GrouperError if it is not usable."""
    import torch

    if device == "auto":
        return own_gpu() if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] == "mps":
        raise GrouperError(NO_FLOAT64)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise GrouperError(f"device {device!r} is not usable here: expected auto, cpu or cuda") from error
    return device
