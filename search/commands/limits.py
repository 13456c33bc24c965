"""Limits of numbers and devices on the command line; values beyond them are usage errors."""

import typer

from grouper.machine import NO_FLOAT64
from grouper.uptraining.options import LARGEST_SEED
from search.options import MOST_GENERATIONS, MOST_ROWS

LARGEST = {"seed": LARGEST_SEED, "population": MOST_ROWS, "generations": MOST_GENERATIONS, "lora_rank": 65_536}
OTHERS = 10**15  # tokens, bytes, windows, layouts


def within_limits(parameter: typer.CallbackParam, value: int | None) -> int | None:
    """The value of an integer option. Raises BadParameter if it is too large."""
    most = LARGEST.get(parameter.name or "", OTHERS)
    if value is not None and abs(value) > most:
        raise typer.BadParameter(f"expected at most {most:,}")
    return value


def usable_device(name: str | None) -> str | None:
    """The name of a device that can compute on this machine, or "auto". Raises BadParameter for any other."""
    if name in (None, "auto", "cpu"):
        return name
    if name is not None and name.partition(":")[0] == "mps":
        raise typer.BadParameter(NO_FLOAT64)
    import torch

    try:
        works = float(torch.ones(1, device=name).sum()) == 1.0  # fails on the device `meta`, which holds no values
    except Exception as error:  # each backend raises errors of its own, import errors included
        raise typer.BadParameter(f"device {name!r} is not usable here: expected auto, cpu or cuda") from error
    if not works:
        raise typer.BadParameter(f"device {name!r} does not compute: expected auto, cpu or cuda")
    return name
