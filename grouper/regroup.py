"""From a layout to weights: calibrate once, merge layers, refine them. What export and evaluation share."""

import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from torch import Tensor

from grouper.attention import MergedLayer
from grouper.calibration.calibration import Calibration
from grouper.calibration.moments import InputMoments, collect_moments, load_moments, save_moments
from grouper.calibration.text import digest, load_tokenizer, spread, windows
from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.merging import Merge
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.model.in_memory import InMemoryModel
from grouper.progress import Progress, untold
from grouper.refinement.layer import RefineOptions
from grouper.refinement.refine import estimate_seconds, refine_layers
from grouper.refinement.saved import SavedLayers

Merged = Callable[[int], MergedLayer]  # a layer's weights, when asked for


class Regrouper:
    """One model's merges. Moments are collected once; merges of a layer are kept while its layout stays the same."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Calibration | None = None,
        device: str = "cpu",
        model: InMemoryModel | None = None,
    ):
        self.checkpoint, self.calibration, self.device = checkpoint, calibration, device
        self.architecture = Architecture.of(checkpoint.config)
        self._model = model
        self._kept: dict[tuple, MergedLayer] = {}

    @cached_property
    def model(self) -> InMemoryModel:
        return self._model or InMemoryModel(self.checkpoint, self.device)

    # Text

    @cached_property
    def every_window(self) -> Tensor:
        """[n, window]: the whole calibration text."""
        if self.calibration is None:
            raise GrouperError("this needs calibration text: give --text or --dataset")
        return windows(self.calibration.source, load_tokenizer(self.checkpoint), self.calibration.window)

    def windows(self, tokens: int) -> Tensor:
        """[n, window] of the calibration text, spread over it."""
        return spread(self.every_window, max(1, tokens // self.every_window.shape[1]))

    def held_out(self, tokens: int) -> Tensor:
        """[n, window] of the calibration text that the moments have not seen, for judging merges on."""
        used = {tuple(row) for row in self.windows(self.calibration.tokens).tolist()}
        every = self.every_window
        rest = every[[i for i, row in enumerate(every.tolist()) if tuple(row) not in used]]
        if not len(rest):
            name = self.calibration.source.name
            raise GrouperError(f"{name} has no text left to judge merges on: give more text, or fewer --tokens")
        return spread(rest, max(1, tokens // self.calibration.window))

    # Moments

    @cached_property
    def moments(self) -> list[InputMoments]:
        """Per layer: from calibration text, or without it from the norms' weights."""
        a = self.architecture
        if self.calibration is None:
            norms = (a.norm(self.checkpoint, layer) for layer in range(a.layers))
            return [InputMoments.from_norm(gain, bias, a.hidden_size) for gain, bias in norms]
        tokens = self.windows(self.calibration.tokens)
        kept = None
        if self.calibration.keep is not None:
            name = f"{self.checkpoint.fingerprint[:16]}-{digest(tokens)}-{tokens.shape[1]}.safetensors"
            kept = self.calibration.keep / name
            if kept.is_file():
                return load_moments(kept)
        moments = self._collect(tokens)
        if kept is not None:
            save_moments(kept, moments)
        return moments

    def _collect(self, tokens: Tensor) -> list[InputMoments]:
        loaded = self._model is not None or "model" in vars(self)
        if not loaded and not InMemoryModel.fits(self.checkpoint, self.device):
            with tempfile.TemporaryDirectory(prefix="grouper-offload-") as folder:
                return collect_moments(InMemoryModel(self.checkpoint, self.device, offload=Path(folder)), tokens)
        return collect_moments(self.model, tokens)

    # Weights

    def merged(self, layout: HeadLayout, merge: Merge, folder: Path | None = None) -> Merged:
        """Layer by layer when asked for. folder: where merged layers are kept instead of in memory."""

        def made(layer: int) -> MergedLayer:
            attention = self.architecture.read(self.checkpoint, layer)
            return MergedLayer(merge.merge(attention, layout.layers[layer], self.moments[layer]))

        def kept(layer: int) -> MergedLayer:
            key = (layer, layout.layers[layer], merge)
            if key not in self._kept:
                for old in [k for k in self._kept if k[0] == layer]:
                    del self._kept[old]
                self._kept[key] = made(layer)
            return self._kept[key]

        return kept if folder is None else SavedLayers(folder, made)

    def estimate(self, layout: HeadLayout, merge: Merge, options: RefineOptions) -> float:
        """Seconds that `refined` will take."""
        options = options.for_device(self.device)
        start = self.merged(layout, merge.before_refinement())
        return estimate_seconds(self.model, layout, start, self.windows(options.tokens), options, self.device)

    def refined(
        self,
        layout: HeadLayout,
        merge: Merge,
        options: RefineOptions | None = None,
        folder: Path | None = None,
        progress: Progress = untold,
    ) -> Merged:
        """Merge and refine. folder: see grouper.refinement.refine."""
        options = (options or RefineOptions()).for_device(self.device)
        start = self.merged(layout, merge.before_refinement())
        tokens = self.windows(options.tokens)
        return refine_layers(
            self.model, layout, start, tokens, options, device=self.device, folder=folder, progress=progress
        )
