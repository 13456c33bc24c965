"""Choice of an export's class: the best class that a layout can have in its family (`Family.export_classes` lists
them), and the reason if it is not the expected one."""

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export.hf.export_class import ExportClass
from grouper.export.hf.padded import Padded
from grouper.export.hf.ragged import Ragged
from grouper.export.hf.stock import Stock
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout

CLASSES: dict[str, ExportClass] = {c.name: c for c in (Stock(), Padded(), Ragged())}


def class_for(
    checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float
) -> tuple[ExportClass, str | None]:
    """Class to write, and a note if it differs from the class that the layout itself allows. A layout refused by that
    class is written as ragged. Raises GrouperError if no class accepts it."""
    wanted, ragged = CLASSES[layout.export_class], CLASSES["ragged"]
    why = wanted.refusal(checkpoint, architecture, layout, max_padding)
    if why is None:
        return wanted, None
    why_not_ragged = ragged.refusal(checkpoint, architecture, layout, max_padding)
    if why_not_ragged:
        raise GrouperError(f"this layout would be written as ragged, but {why_not_ragged}")
    return ragged, f"{why}; written as ragged"
