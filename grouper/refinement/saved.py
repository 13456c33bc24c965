"""Merged and refined layers on disk, one file each: so that none stays in memory, and a killed refinement goes on."""

from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from grouper.attention import Attention, Merged, MergedLayer
from grouper.outputs import write_file

WEIGHTS = ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm", "sinks", "planes")
KINDS = ("attention.", "others.")  # how tensors in a file begin


class RefinedLayers(Protocol):
    """Called with a layer's number, gives its weights."""

    def __call__(self, layer: int) -> MergedLayer: ...

    def errors(self, layer: int) -> tuple[float, float]:
        """Before and after its refinement."""


class LayersInMemory(dict[int, MergedLayer]):
    """Refined layers by their numbers."""

    def __call__(self, layer: int) -> MergedLayer:
        return self[layer]

    def errors(self, layer: int) -> tuple[float, float]:
        return self[layer].before, self[layer].after


class SavedLayers:
    """Called with a layer's number, gives its weights: from the folder, or from `make`, which is asked once."""

    def __init__(self, folder: Path, make: Merged | None = None):
        self.folder, self.make = folder, make

    def path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:03}.safetensors"

    def __contains__(self, layer: int) -> bool:
        return self.path(layer).is_file()

    def __call__(self, layer: int) -> MergedLayer:
        if layer in self:
            return load_layer(self.path(layer))
        done = self.make(layer)
        save_layer(self.path(layer), done)
        return done

    def errors(self, layer: int) -> tuple[float, float]:
        """Before and after refinement."""
        facts = _facts(self.path(layer))
        return float(facts["before"]), float(facts["after"])


def save_layer(path: Path, done: MergedLayer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    present = {n: getattr(done.attention, n) for n in WEIGHTS if getattr(done.attention, n) is not None}
    tensors = {f"attention.{n}": t.contiguous() for n, t in present.items()}
    tensors |= {f"others.{n}": t.contiguous() for n, t in done.others.items()}
    facts = {"before": repr(done.before), "after": repr(done.after), "qk_norm": done.attention.qk_norm or ""}
    write_file(path, lambda beside: save_file(tensors, beside, metadata=facts))


def load_layer(path: Path) -> MergedLayer:
    """What save_layer wrote, to the bit."""
    tensors, facts = load_file(path), _facts(path)
    parts = {kind: {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)} for kind in KINDS}
    attention = Attention(**parts["attention."], qk_norm=facts["qk_norm"] or None)
    return MergedLayer(attention, parts["others."], float(facts["before"]), float(facts["after"]))


def _facts(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()
