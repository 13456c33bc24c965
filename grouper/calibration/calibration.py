"""Options of calibration: the text, and how much of it to use."""

from dataclasses import dataclass
from pathlib import Path

from grouper.calibration.source import TextSource
from grouper.errors import GrouperError
from grouper.option_fields import option

TOKENS = 32_768
WINDOW = 512


@dataclass(frozen=True)
class Calibration:
    """Options of calibration. tokens: number of tokens for the moments, spread evenly over `source`. window: tokens per
    window.

    keep: folder that caches the moments of this model, text and number of tokens. Raises GrouperError if the path is
    something else.
    """

    source: TextSource
    tokens: int = option(TOKENS, "Number of tokens to calibrate on.", panel="Text")
    window: int = option(WINDOW, "Tokens per window.", panel="Text")
    keep: Path | None = option(
        None,
        "Folder that keeps the calibration for other runs of this model and text.",
        panel="Text",
        name="keep_calibration",
        metavar="FOLDER",
    )

    def __post_init__(self) -> None:
        if self.keep is not None and Path(self.keep).exists() and not Path(self.keep).is_dir():
            raise GrouperError(f"`keep_calibration={self.keep}` is not a folder: name another one")
