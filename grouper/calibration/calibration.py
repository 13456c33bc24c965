"""What to calibrate on, and how much of it."""

from dataclasses import dataclass
from pathlib import Path

from grouper.calibration.source import TextSource

TOKENS = 32_768
WINDOW = 512


@dataclass(frozen=True)
class Calibration:
    """tokens: of `source`, spread over it, for the moments. window: tokens that are seen together.

    keep: a folder where the moments of this model, text and tokens are kept and looked for.
    """

    source: TextSource
    tokens: int = TOKENS
    window: int = WINDOW
    keep: Path | None = None
