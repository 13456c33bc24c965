"""Calibration, merging and refinement of a model under a layout, shared by export and evaluation."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from grouper.attention import Merged, MergedLayer
from grouper.calibration.calibration import Calibration
from grouper.calibration.input_moments import InputMoments
from grouper.calibration.kept_tokens import KeptTokens
from grouper.calibration.moments import KeptMoments, collect_moments
from grouper.calibration.reading import CalibrationExamples
from grouper.calibration.seen import Seen, SeenExamples
from grouper.calibration.text import WindowedText, digest, spread
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.gauge import GaugedLayers
from grouper.layout import HeadLayout
from grouper.machine import Tell, no_message
from grouper.merging import Merge
from grouper.model.loadable import check_model
from grouper.outputs import refuse_inside
from grouper.progress import Progress, no_progress
from grouper.ranks import ALONE, Ranks
from grouper.refinement.options import AskedRefinement, RefineOptions
from grouper.refinement.refine import estimate_seconds, refine_layers
from grouper.refinement.store import LayerStore
from grouper.running.batch import Batch
from grouper.running.layers import Layers
from grouper.running.opening import open_model
from grouper.scratch import ScratchFolder


class Regrouper:
    """Merges of one model. Moments are collected once; merges of a layer are kept while its layout stays the same.
    memory: memory budget for the model in bytes; a larger model is streamed from disk. ranks: processes that share the
    text. kept: cache of tokens. found: a run's folder of moments, reused if they are of the same text."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Calibration | None = None,
        device: str = "cpu",
        memory: int | None = None,
        ranks: Ranks = ALONE,
        kept: KeptTokens | None = None,
        found: Path | None = None,
    ):
        self.checkpoint, self.calibration, self.device, self.memory = checkpoint, calibration, device, memory
        self.ranks, self.kept, self.found = ranks, kept, found
        self.architecture = Architecture.of(checkpoint.config)
        check_model(checkpoint)
        self._kept: dict[tuple, MergedLayer] = {}
        self._texts: dict[int, WindowedText] = {}
        self._moments: KeptMoments | None = None
        self._temporary: ScratchFolder | None = None
        if calibration and calibration.keep:
            refuse_inside(calibration.keep, checkpoint.local_folder)

    @cached_property
    def model(self) -> Layers:
        return open_model(self.checkpoint, self.device, self.memory)

    def release(self) -> None:
        """Free memory. Whatever is needed later is computed again."""
        vars(self).pop("model", None)
        self._kept.clear()
        if "cuda" in self.device:
            torch.cuda.empty_cache()

    # Text

    @property
    def calibrated_on(self) -> Calibration:
        """Calibration options. Raises GrouperError if there are none."""
        if self.calibration is None:
            raise GrouperError("this needs calibration text: give `text=FILE` or `dataset`")
        return self.calibration

    @cached_property
    def text(self) -> WindowedText:
        """Calibration text of a decoder. Raises GrouperError if there is none."""
        return WindowedText.of(self.checkpoint, self.calibrated_on.source, self.calibrated_on.window, self.kept)

    def on_whole_text(self) -> "Regrouper":
        """Copy that uses all of the calibration text, held-out stretches included."""
        whole = self.calibration and replace(self.calibration, source=replace(self.calibration.source, part="whole"))
        return Regrouper(self.checkpoint, whole, self.device, self.memory, self.ranks, self.kept, self.found)

    def _resized(self, window: int) -> WindowedText:
        if window not in self._texts:
            self._texts[window] = self.text.resized(window)
        return self._texts[window]

    @cached_property
    def examples(self) -> CalibrationExamples:
        """Calibration text, images or recordings for a model with an encoder. Raises GrouperError if there are none."""
        return CalibrationExamples(self.checkpoint, self.calibrated_on.source, self.calibrated_on.window, self.kept)

    @property
    def reads_windows(self) -> bool:
        """Whether the model reads windows of text, cut end to end, as decoders do."""
        return self.architecture.family.reads == "windows"

    def windows(self, tokens: int) -> Tensor | Batch:
        """Windows [n, window] spread over the calibration text, or examples for an encoder; about `tokens` tokens in
        total."""
        read = self.text if self.reads_windows else self.examples
        return read.spread(max(1, tokens // read.window))

    def texts(self, options: AskedRefinement) -> list[Tensor | Batch]:
        """Windows to refine on, spread over the calibration text: windows of the usual length and, if the text is long
        enough, a share of long ones."""
        plan = options.plan(self.device)
        if not self.reads_windows:
            return [self.windows(plan.tokens)]
        window, context = self.text.window, self.architecture.context or plan.batch_tokens
        long = plan.long_window(window, context)
        count = round(plan.long_share * plan.tokens / long) if long else 0
        short = self.windows(plan.tokens - count * long)
        if not count or short.numel() < long:
            return [self.windows(plan.tokens)]
        return [short, self._resized(long).spread(count)]

    def seen(self, options: AskedRefinement) -> Seen | SeenExamples:
        """Record of the calibration windows that `refined` uses, for the training that follows."""
        texts = [Batch.of(text) for text in self.texts(options)]
        if not self.reads_windows:
            return SeenExamples.of(texts[0])
        return Seen.of(torch.cat([text.ids.view(-1, self.text.window) for text in texts]))

    def held_out(self, tokens: int) -> Tensor:
        """Windows [n, window] of the calibration text that the moments have not seen, to judge merges on. Raises
        GrouperError if there are none, and for encoders."""
        if not self.reads_windows:
            raise GrouperError("merges are judged by the loss (`acceptance=loss`, `sensitivity`) in decoders alone")
        used, limit = Batch.of(self.windows(self.calibrated_on.tokens)).ids, max(1, tokens // self.calibrated_on.window)
        around = self.text.around(len(used), limit)
        rest = around[~Seen.of(used).touches(around)]
        if not len(rest):
            name = self.calibrated_on.source.name
            raise GrouperError(f"{name} has no text left to judge merges on: give more text, or fewer `tokens`")
        return spread(rest, limit)

    # Moments

    def moments_of(self, layer: int) -> InputMoments:
        """Input moments of a layer: from calibration text, or, without text, from the norm's weights."""
        if self.calibration is None:
            return self.architecture.input_moments(self.checkpoint, layer)
        return self.kept_moments()[layer]

    def kept_moments(
        self, progress: Progress = no_progress, tell: Callable[[int, Path], None] = lambda layer, path: None
    ) -> KeptMoments:
        """Moments of the calibration text. They are collected unless they exist already, in the cache folder or else in
        a temporary one. All ranks must make the first call at the same time. tell: called with each layer that this
        process has just saved and its file, while later layers are still being collected."""
        if self._moments is None:
            tokens = self.windows(self.calibrated_on.tokens)
            name = f"{self.checkpoint.fingerprint[:16]}-{digest(tokens)}-{tokens.shape[1]}"
            folder = self.calibrated_on.keep
            if folder is None and self.found and self.ranks.first_does(lambda: self._has(self.found, name)):
                folder = self.found
            if folder is None:
                self._temporary = ScratchFolder()
                folder = self._temporary.path
            moments = KeptMoments(folder / name, self.architecture.layers)
            if not self.ranks.first_does(lambda: moments.complete):
                collected = collect_moments(self.model, tokens, progress, self.ranks)
                if self.ranks.first or self._temporary:
                    moments.keep(collected, lambda layer: tell(layer, moments.path(layer)))
                else:
                    deque(collected, maxlen=0)  # the first rank saves them for all
            self.ranks.wait()
            self._moments = moments
        return self._moments

    @property
    def keeps_moments(self) -> bool:
        """Whether moments were collected into a folder that outlasts this process."""
        return self._moments is not None and self._temporary is None

    def _has(self, folder: Path | None, name: str) -> bool:
        """Whether all moments of this name exist."""
        return folder is not None and KeptMoments(folder / name, self.architecture.layers).complete

    # Weights

    def merged(self, layout: HeadLayout, merge: Merge, folder: Path | None = None) -> Merged:
        """Merged weights, computed layer by layer on request. folder: where layers that are expensive to merge are
        cached instead of in memory; the others are merged again."""
        made = self._made(layout, merge)

        def kept(layer: int) -> MergedLayer:
            key = (layer, layout.layers[layer], merge)
            if key not in self._kept:
                for old in [k for k in self._kept if k[0] == layer]:
                    del self._kept[old]
                self._kept[key] = made(layer)
            return self._kept[key]

        if folder is None:
            return kept
        return LayerStore(folder, made) if merge.expensive else made

    def _made(self, layout: HeadLayout, merge: Merge) -> Merged:
        def made(layer: int) -> MergedLayer:
            attention = self.architecture.read(self.checkpoint, layer)
            return MergedLayer(merge.merge(attention, layout.layers[layer], self.moments_of(layer)))

        return made

    def gauged(self, layout: HeadLayout, merged: Merged) -> GaugedLayers:
        """Same layers, with keys and values scaled so that low-bit KV caches round them less."""
        return GaugedLayers(self.architecture, self.checkpoint.config, layout, merged, self.moments_of)

    def estimate(self, layout: HeadLayout, merge: Merge, options: AskedRefinement) -> float:
        """Estimated seconds that `refined` will take, shared by all ranks."""
        start, plan = self._made(layout, merge.before_refinement()), options.plan(self.device)
        return estimate_seconds(self.model, layout, start, self.texts(plan), plan, self.device, self.ranks)

    def refined(
        self,
        layout: HeadLayout,
        merge: Merge,
        options: AskedRefinement | None = None,
        folder: Path | None = None,
        progress: Progress = no_progress,
        ranks: Ranks = ALONE,
        tell: Tell = no_message,
    ) -> LayerStore:
        """Merged and refined layers. folder, tell: as in refine_layers. ranks: processes that share each step."""
        plan = (options or RefineOptions()).plan(self.device)
        start = self._made(layout, merge.before_refinement())
        return refine_layers(
            self.model, layout, start, self.texts(plan), plan,
            device=self.device, folder=folder, progress=progress, ranks=ranks, tell=tell,
        )  # fmt: skip
