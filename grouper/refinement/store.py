"""Layers' weights by their numbers, in memory or a file each in a folder, so that a killed refinement resumes."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from grouper.attention import Attention, Merged, MergedLayer
from grouper.outputs import write_file

WEIGHTS = ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm", "sinks", "planes")
KINDS = ("attention.", "others.")  # beginnings of the names of tensors in a file


class LayerStore:
    """Call it with a layer's number to get the layer's weights.

    folder: where layers are kept; in memory without. make: gives layers that are not there, each of which is asked for
    once. Raises KeyError for a layer that is neither kept nor made.
    """

    def __init__(self, folder: Path | None = None, make: Merged | None = None):
        self.folder, self._make = folder, make
        self._kept: dict[int, MergedLayer] = {}

    def __contains__(self, layer: int) -> bool:
        return layer in self._kept if self.folder is None else self._path(self.folder, layer).is_file()

    def __call__(self, layer: int) -> MergedLayer:
        if layer not in self:
            if self._make is None:
                raise KeyError(layer)
            self.keep(layer, self._make(layer))
        return self._kept[layer] if self.folder is None else load_layer(self._path(self.folder, layer))

    def keep(self, layer: int, done: MergedLayer) -> None:
        """done: on the CPU."""
        if self.folder is None:
            self._kept[layer] = done
        else:
            save_layer(self._path(self.folder, layer), done)

    def errors(self, layer: int) -> tuple[float, float]:
        """Errors of a layer before and after its refinement."""
        if self.folder is None:
            return self._kept[layer].before, self._kept[layer].after
        facts = _facts(self._path(self.folder, layer))
        return float(facts["before"]), float(facts["after"])

    @staticmethod
    def _path(folder: Path, layer: int) -> Path:
        return folder / f"layer-{layer:03}.safetensors"


def save_layer(path: Path, done: MergedLayer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    present = {n: getattr(done.attention, n) for n in WEIGHTS if getattr(done.attention, n) is not None}
    tensors = {f"attention.{n}": t.contiguous() for n, t in present.items()}
    tensors |= {f"others.{n}": t.contiguous() for n, t in done.others.items()}
    facts = {"before": repr(done.before), "after": repr(done.after), "qk_norm": done.attention.qk_norm or ""}
    write_file(path, lambda beside: save_file(tensors, beside, metadata=facts))


def load_layer(path: Path) -> MergedLayer:
    """Read a layer that save_layer wrote, to the bit."""
    tensors, facts = load_file(path), _facts(path)
    parts = {kind: {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)} for kind in KINDS}
    attention = Attention(**parts["attention."], qk_norm=facts["qk_norm"] or None)
    return MergedLayer(attention, parts["others."], float(facts["before"]), float(facts["after"]))


def _facts(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()
