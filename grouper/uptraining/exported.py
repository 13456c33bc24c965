"""Exported folder, opened for further training: its layout, its weights by the original's names, and the original."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from grouper.attention import MergedLayer
from grouper.calibration.seen import Seen, SeenExamples, SeenRows
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError, as_one_line
from grouper.export.classes import CLASSES
from grouper.export.facts import MARKER, read_facts
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.model.loadable import check_model
from grouper.originals import remembered


@dataclass
class ExportedModel:
    """Exported folder. folder: result of `grouper export`. base: the model whose class the weights are trained in: the
    original, or the folder itself if layers were folded into another class (Phi). layout: layout of the folder relative
    to that base. original: the model that it was made from. facts: contents of grouper.json."""

    folder: Checkpoint
    original: Checkpoint
    base: Checkpoint
    layout: HeadLayout
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, original: str | None = None, otherwise: str | None = None) -> "ExportedModel":
        """Open an exported folder. original: a folder, a Hub id or `demo` (default: the one in grouper.json, and
        `otherwise` if that is not found). Raises GrouperError if the folder is not an export for transformers, or if
        its original is missing or a different model."""
        folder = Path(folder)
        facts = read_facts(folder)
        if facts["report"].get("format") != "hf" or facts["report"].get("deploy") not in CLASSES:
            raise GrouperError(f"{folder} is no model for transformers: export with `format=hf`, and train that")
        exported = Checkpoint.open(folder)
        base = source = _original(folder, facts, original, otherwise).local()
        check_model(base)
        layout, a = HeadLayout.from_data(facts["layout"]), Architecture.of(base.config)
        theirs = (len(layout.layers), layout.query_heads, layout.original_kv_heads, layout.head_dim)
        if theirs != (a.layers, a.query_heads, a.kv_heads, a.head_dim):
            raise GrouperError(f"{base.name} is not the model that {folder} was made from: give that one by `base`")
        if a.as_phi:
            if facts["report"]["deploy"] != "stock":
                raise GrouperError(
                    f"{folder} is a {a.family.model_type} model folded into Phi, of class ragged: only stock ones of "
                    "these can be trained further"
                )
            base = exported
            a = Architecture.of(base.config)
            layout = a.ungrouped
        return cls(exported, source, base, layout, facts)

    @cached_property
    def seen(self) -> Seen | SeenExamples | SeenRows | None:
        """Record of the text that its refinement has seen, if grouper.json has one."""
        return Seen.from_data((self.facts.get("refined") or {}).get("seen"))

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture.of(self.base.config)

    @property
    def export_class(self) -> str:
        return self.facts["report"]["deploy"]

    @property
    def tp(self) -> int:
        """Number of GPUs that engines can split the folder over, as it was exported."""
        return self.facts["report"].get("tp", 1)

    def layer(self, layer: int) -> MergedLayer:
        """Weights of a layer, with heads in the layout's order."""
        a = self.architecture
        with as_one_line(f"{a.name_of(layer)} of {self.folder.name} is not what its {MARKER} says"):
            attention = CLASSES[self.export_class].read(self.folder, self.base, layer, self.layout)
        here = a.prefix(self.base, layer)
        replaced = set().union(*(a.attention_tensors(i) for i in range(a.layers) if a.prefix(self.base, i) == here))
        inner = (n.removeprefix(here) for n in self.base.tensors if n.startswith(here))
        return MergedLayer(attention, {n: self._tensor(here + n) for n in inner if n not in replaced})

    def around(self) -> dict[str, Tensor]:
        """Tensors outside the layers."""
        a = self.architecture
        layers = tuple(a.prefix(self.base, layer) for layer in range(a.layers))
        return {name: self._tensor(name) for name in self.base.tensors if not name.startswith(layers)}

    def _tensor(self, name: str) -> Tensor:
        if name not in self.folder or self.folder.tensors[name].shape != self.base.tensors[name].shape:
            raise GrouperError(f"{self.folder.name} lacks {name} of its original, or has another shape of it")
        return self.folder.finite(name)


def _original(folder: Path, facts: dict[str, Any], given: str | None, otherwise: str | None) -> Checkpoint:
    """Model that the export was made from. For a local original, grouper.json holds only the folder's name and a
    fingerprint. The folder is therefore searched next to the export and at its last known location on this machine."""
    named, known = facts.get("base_model"), facts.get("base_fingerprint")
    if given is not None:
        return Checkpoint.open(given)
    if not named:
        raise GrouperError(f"{folder / MARKER} does not name the model that {folder} was made from: give it by `base`")
    if named.count("/") == 1:
        return Checkpoint.open(named)  # its fingerprint is a commit, and not every commit changes weights
    places: list[str | Path] = [named, folder.absolute().parent / named] if Path(named).name == named else []
    others = []
    for place in (*places, remembered(known)):
        if place is not None and (place == "demo" or (Path(place) / "config.json").is_file()):
            with suppress(GrouperError):  # a different folder of the same name
                found = Checkpoint.open(place)
                if known is None or found.fingerprint == known:
                    return found
            others.append(str(place))
    if otherwise is not None:
        return Checkpoint.open(otherwise)
    where = f"neither here nor beside it{f', and {others[-1]} holds another model' if others else ''}"
    raise GrouperError(f"{named}, which {folder} was made from, is {where}: say `base=FOLDER`")
