"""The machine that work is done on, the memory it may take, and who is told how far it is."""

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
    """Tell nobody."""


def bytes_read(text: str) -> int:
    from grouper.model.memory import parsed_bytes

    return parsed_bytes(text, "`memory`")


@dataclass(frozen=True)
class Machine:
    """device: as torch calls it, or "auto": this process's GPU where there is one, else the CPU. memory: bytes that a
    model may take; a larger one is streamed. tell: gets a line now and then. progress: gets steps done. Raises
    GrouperError for a device that is not usable here."""

    device: str = option("auto", "auto, cpu or cuda. auto is cuda where there is one, else cpu.", panel="Machine")
    memory: int | None = option(
        None,
        "Memory that a model may take, like 8GB; a larger one is streamed. Half of what is free unless given.",
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
        """The processes that work together."""
        return started_ranks()


def usable(device: str) -> str:
    """The device itself, or the one that "auto" means. Raises GrouperError."""
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
