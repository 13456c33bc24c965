"""Measurement of one model's layouts: closeness to the original on text, scores on tasks."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from grouper.attention import Merged
from grouper.cache_types import CacheType, cache_type
from grouper.calibration.text import load_tokenizer
from grouper.compress import Regrouper
from grouper.errors import GrouperError
from grouper.evaluation.closeness import Columns, Original, closeness_of, closeness_of_kept, mean_of
from grouper.evaluation.tasks import TaskOptions, Tasks
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.ranks import ALONE, Ranks
from grouper.running.batch import Batch
from grouper.running.in_memory import InMemoryModel
from grouper.running.layers import Layers
from search.options import COMPUTING
from search.runs.columns import COMPARED
from search.runs.pareto import ParetoFront

PROMPT, ADDED = 32, 48  # tokens of a sample: given to the model, and added by it


class Meter:
    """Meter of one model's layouts, on texts and tasks."""

    def __init__(
        self,
        regrouper: Regrouper,
        texts: Mapping[str, Tensor | Batch],
        tasks: TaskOptions | None,
        dtype: str,
        kept: Sequence[CacheType] = (),
    ):
        """kept: KV cache types to measure with as well, on texts."""
        self.regrouper, self.texts, self.asked, self.kept = regrouper, texts, tasks, kept
        if dtype != COMPUTING:
            regrouper.model = InMemoryModel(regrouper.checkpoint, regrouper.device, getattr(torch, dtype))

    @cached_property
    def originals(self) -> dict[str, Original]:
        """Outputs of the original, by text. All ranks must ask for them at the same time, because they compute them
        together."""
        model, ranks = self.regrouper.model, self.regrouper.ranks
        return {name: Original.of(model, tokens, ranks=ranks) for name, tokens in self.texts.items()}

    @cached_property
    def tasks(self) -> Tasks | None:
        return None if self.asked is None else Tasks(self.asked)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.regrouper.checkpoint)

    def is_missing(self, row: dict) -> bool:
        """Whether the row lacks one of the measurements."""
        if self.texts and all(np.isnan(row.get(column, np.nan)) for column in COMPARED):
            return True
        names = () if self.asked is None else self.asked.names
        return any(all(np.isnan(row[c]) for c in row if c.startswith(f"{name},")) for name in names)

    def lacks_kept(self, front: ParetoFront, index: int) -> bool:
        """Whether a row lacks the measurement with one of the other KV cache types."""
        return front.kept.lacks(front.table.loc[index], [kind.name for kind in self.kept])

    def of_original(self) -> Columns:
        values = on_texts({name: original.columns for name, original in self.originals.items()})
        return {**values, **self._of_tasks(None)}

    def of_layout(self, layout: HeadLayout, merged: Merged, ranks: Ranks = ALONE) -> Columns:
        """Measurements of a layout. ranks: the ranks that measure it together, each on its share of the texts."""
        model, originals = self.regrouper.model, self.originals
        found = {name: closeness_of(model, one, layout, merged, ranks=ranks) for name, one in originals.items()}
        return {**on_texts(found), **self._of_tasks((layout, merged))}

    def of_kept(self, regrouped: tuple[HeadLayout, Merged] | None = None, ranks: Ranks = ALONE) -> dict[str, Columns]:
        """Measurements on texts with each of the other KV cache types, for a layout, or for the original by default. A
        layout is measured in the gauge that `export` gives it, the original in its own."""
        if regrouped is not None and self.kept:
            regrouped = regrouped[0], self.regrouper.gauged(*regrouped)

        def found(original: Original, kind: CacheType) -> Columns:
            if regrouped is None:
                return closeness_of_kept(original, kind, ranks=ranks)
            return closeness_of(self.regrouper.model, original, *regrouped, ranks=ranks, kept=kind)

        texts = self.originals.items() if self.kept else ()
        return {kind.name: on_texts({name: found(one, kind) for name, one in texts}) for kind in self.kept}

    @cached_property
    def prompt(self) -> Tensor | None:
        """First token ids [T] of a text, for a decoder in memory that can continue it, and whose tokenizer can write it
        down; None otherwise."""
        a, model = self.regrouper.architecture, self.regrouper.model
        windows = Batch.of(next(iter(self.texts.values()))).windows if self.texts else None
        if windows is None or a.family.reads != "windows" or not isinstance(model, InMemoryModel):
            return None
        try:
            self.tokenizer  # noqa: B018
        except GrouperError:  # a text of token ids needs none
            return None
        prompt, decoder = windows[0, :PROMPT], cast(Any, model.model)  # [T]
        return prompt if a.context >= len(prompt) + ADDED and decoder.can_generate() else None

    def sample(self, regrouped: tuple[HeadLayout, Merged] | None = None) -> dict[str, str]:
        """The prompt and the model's continuation, for a layout, or for the original by default; {} without a
        prompt."""
        if self.prompt is None:
            return {}
        model = in_memory(self.regrouper.model)
        with model.installed(*regrouped) if regrouped else nullcontext(model.model) as installed:
            text = continuation(installed, self.tokenizer, self.prompt)
        return {"prompt": self.tokenizer.decode(self.prompt), "text": text}

    def _of_tasks(self, regrouped: tuple[HeadLayout, Merged] | None) -> Columns:
        if self.tasks is None:
            return {}
        model = in_memory(self.regrouper.model)
        if regrouped is None:
            return self.tasks.scores(model.model, self.tokenizer)
        with model.installed(*regrouped) as installed:
            return self.tasks.scores(installed, self.tokenizer)


def continuation(model: Any, tokenizer: Any, prompt: Tensor, tokens: int = ADDED) -> str:
    """Greedy continuation of a prompt by a decoder of transformers. prompt: ids, [T]."""
    given = prompt[None].to(model.device)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
    with torch.inference_mode():
        found = model.generate(
            given, attention_mask=torch.ones_like(given), pad_token_id=0, **options
        )  # [1, T + tokens]
    return tokenizer.decode(found[0, len(prompt) :])


def in_memory(model: Layers) -> InMemoryModel:
    """The model in memory. Raises GrouperError for a streamed model, which a task harness cannot run."""
    if not isinstance(model, InMemoryModel):
        size = 4 * model.checkpoint.parameters / 1e9
        raise GrouperError(f"tasks need the model in memory, {size:.1f} GB: give more --memory")
    return model


def kinds_of(
    names: Sequence[str] | None, own: str, a: Architecture, texts: Mapping[str, Tensor | Batch]
) -> list[CacheType]:
    """KV cache types to measure with in addition to the run's own, which is always measured. Raises GrouperError for
    types that do not suit the model."""
    kinds = [cache_type(name) for name in dict.fromkeys(names or ()) if name != own]
    if names and (a.family.reads != "windows" or not texts):
        raise GrouperError("--kv-cache is for decoders, measured on text: give --text or --dataset")
    for kind in kinds:
        kind.check(a.head_dim, a.family.position)
    return kinds


def on_texts(found: dict[str, Columns]) -> Columns:
    """Columns of all texts together. One unnamed text gives its own columns; others give their mean, and every text's
    columns with ":NAME" appended."""
    if not found:
        return {}
    if list(found) == [""]:
        return found[""]
    return mean_of(found) | {f"{column}:{name}": v for name, columns in found.items() for column, v in columns.items()}
