"""Choice of an export's class: the best class that a layout can have in its family (`Family.export_classes` lists
them), and the reason if it is not the expected one."""

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export.hf.export_class import ExportClass
from grouper.export.hf.padded import Padded
from grouper.export.hf.ragged import Ragged
from grouper.export.hf.slots import check_model_to_split, slots_for
from grouper.export.hf.stock import Stock
from grouper.families.architecture import Architecture
from grouper.families.configuration import decoder_config
from grouper.layout import HeadLayout

CLASSES: dict[str, ExportClass] = {c.name: c for c in (Stock(), Padded(), Ragged())}


def class_named(name: str, tp: int = 1) -> ExportClass:
    """Class with this name, for engines that split the model over `tp` GPUs."""
    return Padded(tp) if name == Padded.name else CLASSES[name]


def class_for(
    checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float, tp: int = 1
) -> tuple[ExportClass, str | None]:
    """Class to write, and a note if it differs from the class that the layout itself allows. A layout refused by that
    class is written as ragged, which engines cannot split over GPUs. Raises GrouperError if no class accepts it."""
    if tp != 1:
        return _class_to_split(checkpoint, architecture, layout, max_padding, tp)
    wanted, ragged = CLASSES[layout.export_class], CLASSES["ragged"]
    why = wanted.refusal(checkpoint, architecture, layout, max_padding)
    if why is None:
        return wanted, None
    why_not_ragged = ragged.refusal(checkpoint, architecture, layout, max_padding)
    if why_not_ragged:
        raise GrouperError(f"this layout would be written as ragged, but {why_not_ragged}")
    return ragged, f"{why}; written as ragged"


def _class_to_split(
    checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float, tp: int
) -> tuple[ExportClass, str | None]:
    """Class that engines can split over `tp` GPUs: the layout's own, or padded with zero heads."""
    check_model_to_split(decoder_config(checkpoint.config), tp)
    if layout.export_class not in ("stock", "padded"):
        other = f"this one is {layout.export_class}"
        raise GrouperError(f"engines can split only layouts of class stock and padded (`tp={tp}`), {other}")
    slots = slots_for(layout, tp)
    pads = slots != slots_for(layout)
    wanted = Padded(tp) if pads else CLASSES[layout.export_class]
    why = wanted.refusal(checkpoint, architecture, layout, max_padding)
    if why:
        heads = f"{slots.query_heads} query and {slots.kv_heads} KV heads"
        raise GrouperError(f"engines could not split this layout over {tp} GPUs without padding it to {heads}: {why}")
    if not pads:
        return wanted, None
    told = f"padded to {slots.query_heads} query heads, so that engines can split them over {tp} GPUs"
    kv_heads = layout.layers[0].k.kv_heads
    if kv_heads == slots.kv_heads:
        return wanted, told
    larger = f"and from {kv_heads} to {slots.kv_heads} KV heads, with {slots.kv_heads / kv_heads - 1:.0%} more KV cache"
    return wanted, f"{told}; {larger} (none with a count that {tp} divides or that divides {tp})"
