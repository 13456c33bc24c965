"""Weights of layers by number, in memory or in one file each, so that a killed refinement resumes."""

from dataclasses import dataclass
from pathlib import Path

from grouper.attention import Attention, Merged, MergedLayer
from grouper.errors import GrouperError
from grouper.tensor_files import facts_of, load_tensors, save_tensors

WEIGHTS = ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm", "sinks", "planes")
CURE = "delete it, and that layer is made again"
KINDS = ("attention.", "others.")  # prefixes of tensor names in a file


class LayerStore:
    """Layer store; call it with a layer's number to get the layer's weights.

    folder: folder for the layers; None keeps them in memory. make: computes a missing layer, once. Raises KeyError for
    a layer that is neither stored nor computed.
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
        """Store a layer. done: its weights, on the CPU."""
        if self.folder is None:
            self._kept[layer] = done
        else:
            save_layer(self._path(self.folder, layer), done)

    def errors(self, layer: int) -> tuple[float, float]:
        """Errors of a layer before and after its refinement."""
        if self.folder is None:
            return self._kept[layer].before, self._kept[layer].after
        facts = facts_of(self._path(self.folder, layer), _Facts, CURE)
        return facts.before, facts.after

    @staticmethod
    def _path(folder: Path, layer: int) -> Path:
        return folder / f"layer-{layer:03}.safetensors"


@dataclass(frozen=True)
class _Facts:
    """Errors before and after refinement, and the kind of norm on q and k."""

    before: float
    after: float
    qk_norm: str = ""


def save_layer(path: Path, done: MergedLayer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    present = {n: getattr(done.attention, n) for n in WEIGHTS if getattr(done.attention, n) is not None}
    tensors = {f"attention.{n}": t for n, t in present.items()} | {f"others.{n}": t for n, t in done.others.items()}
    save_tensors(path, tensors, _Facts(done.before, done.after, done.attention.qk_norm or ""))


def load_layer(path: Path) -> MergedLayer:
    """Read a layer that save_layer wrote, bit for bit. Raises GrouperError if the file is something else."""
    tensors, facts = load_tensors(path, _Facts, CURE)
    parts = {kind: {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)} for kind in KINDS}
    if not set(WEIGHTS[:4]) <= parts["attention."].keys() <= set(WEIGHTS):
        raise GrouperError(f"{path} holds no layer: {CURE}")
    attention = Attention(**parts["attention."], qk_norm=facts.qk_norm or None)
    return MergedLayer(attention, parts["others."], facts.before, facts.after)
