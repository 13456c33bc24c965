"""Texts to measure on: the amount taken of each, and the time that takes."""

import time
from collections.abc import Mapping

from torch import Tensor, get_num_threads

from grouper.calibration.kept_tokens import KeptTokens
from grouper.calibration.reading import read_examples
from grouper.calibration.source import TextSource
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.evaluation.closeness import Original
from grouper.evaluation.perplexity import batches
from grouper.evaluation.tasks import TaskOptions
from grouper.families.architecture import Architecture
from grouper.running.batch import Batch
from grouper.running.in_memory import InMemoryModel
from grouper.running.layers import Layers
from search.options import MEASURED_WINDOWS

Texts = Mapping[str, TextSource]  # by the names used in columns; a single text may be called ""


def texts_of(
    checkpoint: Checkpoint,
    source: TextSource | Texts | None,
    tasks: TaskOptions | None,
    window: int,
    limit: int | None,
    kept: KeptTokens | None = None,
) -> dict[str, Batch]:
    """Model inputs by the names of their texts. limit: windows or examples of each; default is MEASURED_WINDOWS of
    text, and all pairs, pictures or sounds. kept: tokens that were kept earlier, and where to keep new ones."""
    if source is None and tasks is None:
        raise GrouperError("give text by --text FILE or by --dataset NAME[:split], or --images or --tasks")
    sources = {"": source} if isinstance(source, TextSource) else source or {}
    reads = Architecture.of(checkpoint.config).family.reads
    if tasks is not None and reads != "windows":
        raise GrouperError("tasks are for decoders: lm-evaluation-harness runs nothing else")
    if limit is None and reads in ("windows", "text"):
        limit = MEASURED_WINDOWS
    return {name: read_examples(checkpoint, one, window, limit, kept) for name, one in sources.items()}


def amount(texts: Mapping[str, Tensor | Batch]) -> str:
    """Amount of text measured on, for messages.

    >>> import torch
    >>> amount({"": torch.zeros(64, 512)}), amount({"a": torch.zeros(9, 64), "b": torch.zeros(8, 64)})
    ('64 windows of 512 tokens', '17 windows of 64 tokens')
    """
    given = [Batch.of(text) for text in texts.values()]
    count = sum(map(len, given))
    of_text = all(batch.windows is not None for batch in given)
    return f"{count} windows of {given[0].tokens} tokens" if of_text else f"{count} examples"


def seconds_of(model: Layers, texts: Mapping[str, Tensor | Batch]) -> float | None:
    """Seconds that a model takes for all texts, estimated from a few windows of each. None without texts, and for a
    streamed model, which reads all its weights from disk even for few windows."""
    if not texts or not isinstance(model, InMemoryModel):
        return None
    seconds = 0.0
    for text in texts.values():
        batch = Batch.of(text)
        at_once = 1 if "cuda" in str(model.device) else get_num_threads()
        few = batch[: at_once * batches(batch, model.device)[0].stop]
        Original.of(model, batch[:1])  # warm-up: the first pass takes longer
        began = time.perf_counter()
        Original.of(model, few)
        seconds += (time.perf_counter() - began) / len(few) * len(batch)
    return seconds
