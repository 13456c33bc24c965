"""From a layout to weights: calibrate once, merge layers, refine them. What export and evaluation share."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from grouper.attention import MergedLayer
from grouper.calibration.moments import InputMoments, collect_moments, load_moments, save_moments
from grouper.calibration.text import TextSource, digest, load_tokenizer, spread, windows
from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.merging import merge_named
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.model.in_memory import InMemoryModel
from grouper.refinement.refine import Progress, RefineOptions, estimate_seconds, refine

TOKENS = 32_768
WINDOW = 512
REFINE_TOKENS = {"cpu": 16_384, "cuda": 393_216}
Merged = Callable[[int], MergedLayer]


@dataclass(frozen=True)
class Calibration:
    """Text to calibrate on. tokens: for the moments; refine_tokens: at most, for refinement (by device unless given); window: tokens.

    keep: a folder where the moments of this model, text and tokens are kept and looked for.
    """

    source: TextSource
    tokens: int = TOKENS
    refine_tokens: int | None = None
    window: int = WINDOW
    keep: Path | None = None


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

    @cached_property
    def every_window(self) -> Tensor:
        """[n, window]: the whole calibration text."""
        if self.calibration is None:
            raise GrouperError("this needs calibration text: give --text or --dataset")
        return windows(self.calibration.source, load_tokenizer(self.checkpoint), self.calibration.window)

    def windows(self, tokens: int) -> Tensor:
        """[n, window] of the calibration text, spread over it."""
        return spread(self.every_window, max(1, tokens // self.every_window.shape[1]))

    @cached_property
    def moments(self) -> list[InputMoments]:
        """Per layer: from calibration text, or without it from the norms' weights."""
        a = self.architecture
        if self.calibration is None:
            return [InputMoments.from_norm(*a.norm(self.checkpoint, layer), a.hidden_size) for layer in range(a.layers)]
        tokens = self.windows(self.calibration.tokens)
        kept = None
        if self.calibration.keep is not None:
            kept = (
                self.calibration.keep
                / f"{self.checkpoint.fingerprint[:16]}-{digest(tokens)}-{tokens.shape[1]}.safetensors"
            )
            if kept.is_file():
                return load_moments(kept)
        moments = self._collect(tokens)
        if kept is not None:
            save_moments(kept, moments)
        return moments

    def _collect(self, tokens: Tensor) -> list[InputMoments]:
        if self._model is None and "model" not in vars(self) and not InMemoryModel.fits(self.checkpoint, self.device):
            with tempfile.TemporaryDirectory(prefix="grouper-offload-") as folder:
                return collect_moments(InMemoryModel(self.checkpoint, self.device, offload=Path(folder)), tokens)
        self.model.restore()
        return collect_moments(self.model, tokens)

    def held_out(self, tokens: int) -> Tensor:
        """[n, window] of the calibration text that the moments have not seen, for judging merges on."""
        used = {tuple(row) for row in self.windows(self.calibration.tokens).tolist()}
        every = self.every_window
        rest = every[[i for i, row in enumerate(every.tolist()) if tuple(row) not in used]]
        if not len(rest):
            raise GrouperError(
                f"{self.calibration.source.name} has no text left to judge merges on: give more text, or fewer --tokens"
            )
        return spread(rest, max(1, tokens // self.calibration.window))

    def merged(self, layout: HeadLayout, merge: str, before_refinement: bool = False) -> Merged:
        """Layer by layer when asked for."""
        function = merge_named(merge, before_refinement)

        def layer_of(layer: int) -> MergedLayer:
            key = (layer, layout.layers[layer], merge, before_refinement)
            if key not in self._kept:
                for old in [k for k in self._kept if k[0] == layer]:
                    del self._kept[old]
                attention = self.architecture.read(self.checkpoint, layer)
                self._kept[key] = MergedLayer(function(attention, layout.layers[layer], self.moments[layer]))
            return self._kept[key]

        return layer_of

    @property
    def refine_tokens(self) -> int:
        return self.calibration.refine_tokens or REFINE_TOKENS["cuda" if "cuda" in self.device else "cpu"]

    def refine_options(self, scope: str | None = None, seed: int = 0) -> RefineOptions:
        """Defaults by device: the whole block on a GPU, attention alone on a CPU, in smaller steps."""
        gpu = "cuda" in self.device
        return RefineOptions(
            scope=scope or ("block" if gpu else "attention"), batch_tokens=4096 if gpu else 1024, seed=seed
        )

    def estimate(self, layout: HeadLayout, merge: str, options: RefineOptions) -> float:
        """Seconds that `refined` will take."""
        start = self.merged(layout, merge, before_refinement=True)
        return estimate_seconds(
            self.model, layout, lambda l: start(l).attention, self.windows(self.refine_tokens), options, self.device
        )

    def refined(
        self,
        layout: HeadLayout,
        merge: str,
        options: RefineOptions,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Merged:
        """Merge and refine. folder: see grouper.refinement.refine.refine."""
        start = self.merged(layout, merge, before_refinement=True)
        tokens = self.windows(self.refine_tokens)
        layers = refine(
            self.model,
            layout,
            lambda l: start(l).attention,
            tokens,
            options,
            device=self.device,
            folder=folder,
            progress=progress,
        )
        self.model.restore()
        return layers.__getitem__

    def install(self, layout: HeadLayout, merged: Merged) -> torch.nn.Module:
        """The model in memory with these weights in it."""
        self.model.restore()
        for layer, heads in enumerate(layout.layers):
            self.model.install(layer, merged(layer), heads)
        return self.model.model
