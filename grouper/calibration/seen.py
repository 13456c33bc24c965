"""Which windows of a text a refinement has seen: training from there judges itself on others, for on those the start
looks better than it is."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from grouper.calibration.text import digest, spread

HEAD = 1024  # tokens that tell texts apart
MOST = 2**26  # windows of a text


@dataclass(frozen=True)
class Seen:
    """head: digest of the text's first tokens. windows, window: the text as it was cut. used: how many of these windows
    were seen, spread evenly."""

    head: str
    windows: int
    window: int
    used: int

    @classmethod
    def of(cls, every: Tensor, used: int) -> "Seen":
        """every [n, window]: the whole text."""
        return cls(digest(every.flatten()[:HEAD]), *every.shape, min(used, len(every)))

    @classmethod
    def from_data(cls, data: object) -> "Seen | None":
        """What to_data gave; None where it is anything else, as in files of older versions."""
        try:
            found = cls(**data)
            whole = all(type(n) is int and n > 0 for n in (found.windows, found.window, found.used))
            return found if whole and found.used <= found.windows < MOST else None
        except TypeError:
            return None

    def to_data(self) -> dict:
        return asdict(self)

    def touches(self, tokens: Tensor) -> Tensor:
        """[n], bool: which of these windows [n, window] hold a token that was seen; none if it is another text."""
        if digest(tokens.flatten()[:HEAD]) != self.head:
            return torch.zeros(len(tokens), dtype=torch.bool)
        rows = spread(torch.arange(self.windows), self.used)
        rows = rows[rows * self.window < tokens.numel()]
        places = (rows[:, None] * self.window + torch.arange(min(self.window, tokens.numel()))).flatten()
        seen = torch.zeros(tokens.numel(), dtype=torch.bool)
        seen[places[places < tokens.numel()]] = True
        return seen.view(tokens.shape).any(1)
