"""Conversion of files to model inputs: windows of text, pairs, images, or recordings with their transcripts."""

from functools import cache

import torch

from grouper.calibration.images import read_images
from grouper.calibration.kept_tokens import KeptTokens
from grouper.calibration.sounds import read_sounds
from grouper.calibration.source import TextSource
from grouper.calibration.text import WindowedText, check_known, check_sizes, load_tokenizer, spread, text_of
from grouper.calibration.token_ids import holds_ids
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError, as_one_line
from grouper.families.architecture import Architecture
from grouper.model.auto import auto_class
from grouper.running.batch import NOT_ASKED, Batch, padded

MOST_FILES = 4096  # images or recordings read at most, spread evenly over all
WRITING = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")
# Heads whose inputs are neither plain text nor plain images; calibration cannot read them.
UNREAD = ("AutoModelForMultipleChoice", "AutoModelForMaskedImageModeling")
MASKED = 0.15  # share of a window's tokens masked for a masked language model, as in BERT's training


class CalibrationExamples:
    """Examples to calibrate on, read once. Text is read as far as needed. Pairs, images and recordings are read
    completely, the latter two up to MOST_FILES."""

    def __init__(self, checkpoint: Checkpoint, source: TextSource, window: int, kept: KeptTokens | None = None):
        self._architecture, self._window = Architecture.of(checkpoint.config), window
        self._read = cache(lambda limit: read_examples(checkpoint, source, window, limit, kept))

    @property
    def window(self) -> int:
        """Tokens per example."""
        family = self._architecture.family
        if family.reads == "text" and not family.parts:
            return min(self._window, positions(self._architecture) or self._window)
        return self._every.shape[1]

    @property
    def _every(self) -> Batch:
        return self._read(MOST_FILES if self._architecture.family.reads in ("pictures", "sounds") else None)

    def spread(self, limit: int) -> Batch:
        """Selection of at most `limit` examples, spread evenly."""
        family = self._architecture.family
        return self._read(limit) if family.reads == "text" and not family.parts else spread(self._every, limit)


def read_examples(
    checkpoint: Checkpoint,
    source: TextSource,
    window: int,
    limit: int | None = None,
    kept: KeptTokens | None = None,
) -> Batch:
    """Examples of `source` in the form that this model reads; at most `limit`, spread evenly. window: most tokens per
    example. kept: cache of a text's tokens. Raises GrouperError if source and model do not fit together."""
    check_sizes(window, limit)
    architecture = Architecture.of(checkpoint.config)
    kind, auto = architecture.family.reads, auto_class(checkpoint.config)
    if auto in UNREAD or (architecture.family.parts and auto not in WRITING):
        saved = next(iter(checkpoint.config.get("architectures") or []), "a model without a head")
        raise GrouperError(f"{checkpoint.name} is {saved}, which can be grouped without text or pictures alone")
    if (kind == "pictures") != bool(source.images):
        takes = "pictures: give `images=FOLDER`" if kind == "pictures" else "text: give `text=FILE`, not `images`"
        raise GrouperError(f"{checkpoint.name} takes {takes}")
    if kind == "windows":
        return Batch.of(text_of(checkpoint, source, window, limit, kept))
    if holds_ids(source) and kind != "text":
        raise GrouperError(f"{checkpoint.name} reads {kind}, which a file of token ids does not hold")
    if kind == "pictures":
        return read_images(checkpoint, source.name, limit)
    window = min(window, positions(architecture) or window)
    if kind == "text":
        every = _windows(checkpoint, source, window, limit, kept)
        return spread(every, limit) if limit else every
    pairs = source.pairs()
    pairs = spread(pairs, limit) if limit else pairs
    if kind == "sounds":
        return read_sounds(checkpoint, source, pairs, window)
    return _pairs(checkpoint, source, pairs, window)


def positions(architecture: Architecture) -> int:
    """Largest number of tokens that the model accepts; 0 if it has no limit. RoBERTa numbers positions from its padding
    index on."""
    return 0 if architecture.position == "relative" else max(0, architecture.context - architecture.family.taken)


def _windows(
    checkpoint: Checkpoint, source: TextSource, window: int, limit: int | None, kept: KeptTokens | None
) -> Batch:
    """Windows of text, cut end to end, each with the tokenizer's begin and end tokens. For a masked language model a
    share of the tokens is masked, always the same ones; they are the ones to predict. limit: number of windows needed
    of a long text; a shorter text is cut completely."""
    begin, end, mask = _own_tokens(checkpoint, source)
    size = window - len(begin) - len(end)
    text = WindowedText.of(checkpoint, source, size, kept, chained=False)
    tokens = text.spread(limit if text.is_long(limit) else None)
    edges = (torch.tensor(ids, dtype=torch.long).expand(len(tokens), -1) for ids in (begin, end))
    rows = torch.cat([next(edges), tokens, next(edges)], 1)
    check_known(checkpoint, rows)
    inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    if auto_class(checkpoint.config) != "AutoModelForMaskedLM":
        return Batch(inputs, None, window)
    if mask is None:
        raise GrouperError(f"{checkpoint.name} has no token for masked places (mask_token_id)")
    chosen = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) < MASKED
    chosen[:, : len(begin)] = False
    chosen[:, rows.shape[1] - len(end) :] = False
    labels = torch.where(chosen, rows, NOT_ASKED)
    inputs["input_ids"] = torch.where(chosen, mask, rows)
    return Batch(inputs, labels, window)


def _own_tokens(checkpoint: Checkpoint, source: TextSource) -> tuple[list[int], list[int], int | None]:
    """Ids that begin and end a window, and the one for masked places. Windows of token ids are taken as they are."""
    if holds_ids(source):
        return [], [], checkpoint.config.get("mask_token_id")
    tokenizer = load_tokenizer(checkpoint)
    begin, end = ([i] if i is not None else [] for i in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    return begin, end, tokenizer.mask_token_id


def _pairs(checkpoint: Checkpoint, source: TextSource, pairs: list[tuple[str, str]], window: int) -> Batch:
    """Sources with their targets, padded to the longest."""
    tokenizer = load_tokenizer(checkpoint)
    with as_one_line(f"the tokenizer of {checkpoint.name} cannot read {source.name}"):
        options = {"truncation": True, "max_length": window, "verbose": False}
        read = [tokenizer(text, **options)["input_ids"] for text, _ in pairs]
        written = [tokenizer(text_target=text, **options)["input_ids"] for _, text in pairs]
    filling = tokenizer.pad_token_id or 0
    ids = padded(read, filling)
    check_known(checkpoint, padded(written, filling))
    check_known(checkpoint, ids)
    mask = padded([[1] * len(row) for row in read], 0)
    labels = padded(written, NOT_ASKED)
    return Batch({"input_ids": ids, "attention_mask": mask}, labels, ids.shape[1] + labels.shape[1])
