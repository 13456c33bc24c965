"""What to calibrate on, and how much of it."""

from dataclasses import dataclass
from pathlib import Path

from grouper.calibration.source import TextSource
from grouper.errors import GrouperError
from grouper.option_fields import option

TOKENS = 32_768
WINDOW = 512


@dataclass(frozen=True)
class Calibration:
    """tokens: of `source`, spread over it, for the moments. window: tokens that are seen together.

    keep: a folder where the moments of this model, text and tokens are kept and looked for. Raises GrouperError where
    that is something else.
    """

    source: TextSource
    tokens: int = option(TOKENS, "Tokens of text to calibrate on.", panel="Text")
    window: int = option(WINDOW, "Tokens of a window.", panel="Text")
    keep: Path | None = option(
        None,
        "Folder where what was calibrated is kept and looked for.",
        panel="Text",
        name="keep_calibration",
        metavar="FOLDER",
    )

    def __post_init__(self) -> None:
        if self.keep is not None and Path(self.keep).exists() and not Path(self.keep).is_dir():
            raise GrouperError(f"`keep_calibration={self.keep}` is not a folder: name another one")
