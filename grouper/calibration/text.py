"""Text as tokens, in windows of one length."""

import copy
from array import array
from collections.abc import Callable
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from grouper.calibration.kept_tokens import KeptTokens, key_of
from grouper.calibration.parts import PartOfText
from grouper.calibration.source import Documents, TextSource
from grouper.calibration.token_ids import holds_ids, ids_of
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError, as_one_line
from grouper.families.configuration import decoder_config, setting
from grouper.model.loading import load
from grouper.running.batch import Batch

Several = TypeVar("Several", Tensor, Batch, list)
WHOLE = 2**22  # bytes: a text up to this size is tokenised in one piece
SPARSE = 16  # bytes per token, an upper bound in practice
PIECE = 2**20  # bytes of a longer text tokenised at a time


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The model's own tokenizer, as transformers loads it."""
    with as_one_line(f"{checkpoint.name} has no tokenizer that transformers can load"):
        return load("AutoTokenizer", checkpoint.local().folder)


def text_of(
    checkpoint: Checkpoint, source: TextSource, window: int, limit: int | None = None, kept: KeptTokens | None = None
) -> Tensor:
    """Token ids [n, window] as `windows` cuts them, by the model's own tokenizer. kept: cache of tokens. Raises
    GrouperError if the tokenizer has tokens without an embedding in the model."""
    return WindowedText.of(checkpoint, source, window, kept).spread(limit)


def check_known(checkpoint: Checkpoint, tokens: Tensor) -> None:
    """Raise GrouperError for ids without an embedding in the model, or if there are no ids at all."""
    if not tokens.numel():
        raise GrouperError(f"the text gives no tokens for {checkpoint.name}: are its sources or targets empty?")
    known = setting(decoder_config(checkpoint.config), "vocab_size", None)
    if known is not None and int(tokens.max()) >= known:
        raise GrouperError(
            f"the tokenizer of {checkpoint.name} gives token {int(tokens.max())}, and the model knows {known}: do they "
            "belong together?"
        )


def windows(source: TextSource, tokenizer: Any, window: int, limit: int | None = None) -> Tensor:
    """Token ids [n, window]: documents end to end, separated by an end-of-text token, cut into windows that do not
    overlap.

    limit: largest number of windows, spread evenly over the text. Raises GrouperError if the text is shorter than one
    window.
    """
    return WindowedText(source, lambda: tokenizer, window).spread(limit)


class WindowedText:
    """Text in windows of equal length, tokenised as far as windows are needed.

    A text of up to WHOLE bytes, or one that is mostly needed, is tokenised whole and cut into windows end to end. A
    longer text is divided into n stretches of equally many bytes, and the first window of each is taken; the rest is
    not read. The two ways cut differently, but each always cuts in the same way.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: Callable[[], Any],
        window: int,
        *,
        chained: bool = True,
        reader: str = "the tokenizer",
        kept: tuple[KeptTokens, Path] | None = None,
        check: Callable[[Tensor], None] = lambda tokens: None,
    ):
        """Prepare a text for reading. tokenizer: loads the tokenizer. chained: add the tokenizer's own tokens at the
        start of the text, and an end-of-text token after each document. reader: name of the tokenizer's owner, for
        messages. kept: cache of windows, and the tokenizer's folder. check: raises GrouperError for tokens that the
        model does not know."""
        check_sizes(window, None)
        self.source, self.window, self._chained, self._reader, self._kept = source, window, chained, reader, kept
        self._load, self._check = cache(tokenizer), check
        self._read: dict[int | None, Tensor] = {}

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        source: TextSource,
        window: int,
        kept: KeptTokens | None = None,
        chained: bool = True,
    ) -> "WindowedText":
        """Text by the model's own tokenizer. Raises GrouperError, now or on reading."""
        if source.images:
            raise GrouperError(f"{checkpoint.name} takes text: give `text=FILE`, not `images`")
        local, kept = checkpoint.local(), None if holds_ids(source) else kept
        return cls(
            source, lambda: load_tokenizer(local), window, chained=chained,
            reader=f"the tokenizer of {checkpoint.name}", kept=None if kept is None else (kept, local.folder),
            check=partial(check_known, checkpoint),
        )  # fmt: skip

    def spread(self, limit: int | None = None) -> Tensor:
        """Windows [n, window] of ids: at most `limit`, spread evenly over the text; all of it by default. Raises
        GrouperError if the text is shorter than one window."""
        check_sizes(self.window, limit)
        if limit not in self._read:
            path = self.source.path
            tokens = self._found(path, *self._kept, limit) if self._kept and path else self._tokenised(limit)
            self._check(tokens)
            self._read[limit] = tokens
        return self._read[limit]

    def around(self, used: int, limit: int) -> Tensor:
        """Windows [n, window] of ids: those of `spread(used)`, perhaps cut differently, and at least `limit` others if
        the text is long enough."""
        parts = 1 + -(-limit // used)  # windows per stretch; the first one starts where the stretch does
        if self.is_long(used * parts):
            every = self.spread(used * parts)
            if torch.equal(every[::parts], self.spread(used)):
                return every
        return self.spread()

    def is_long(self, limit: int | None) -> bool:
        """Whether this number of windows is a small part of the text."""
        return (
            limit is not None
            and not holds_ids(self.source)
            and self._documents.size > max(WHOLE, SPARSE * limit * self.window)
        )

    @cached_property
    def _documents(self) -> Documents:
        return self.source.documents(self._load)

    def _found(self, text: Path, kept: KeptTokens, tokenizer: Path, limit: int | None) -> Tensor:
        """Cached windows if there are any, else those of `_tokenised`."""
        part = (self.source.part,) if isinstance(self._documents, PartOfText) else ()
        how = (self.window, self._chained, limit, WHOLE, SPARSE, PIECE, *part)
        with as_one_line(f"{self._reader} cannot read {self.source.name}"):
            key = key_of(text, tokenizer, *how)
        tokens = kept.find(key)
        if tokens is None:
            kept.keep(key, tokens := self._tokenised(limit))
        return tokens

    def _tokenised(self, limit: int | None) -> Tensor:
        with as_one_line(f"{self._reader} cannot read {self.source.name}"):
            if limit is None:
                return self._every
            found = self._sampled(limit) if self.is_long(limit) else None
            return spread(self._every, limit) if found is None else found

    def resized(self, window: int) -> "WindowedText":
        """Same text in windows of another length. A text that was tokenised whole is not tokenised again."""
        check_sizes(window, None)
        other = copy.copy(self)
        other.window, other._read = window, {}
        vars(other).pop("_every", None)
        return other

    @cached_property
    def _whole(self) -> array:
        """Ids of the whole text."""
        if holds_ids(self.source):
            return ids_of(self.source)
        size = self._documents.size
        return self._ids(0, size, None if size <= WHOLE else PIECE)

    @cached_property
    def _every(self) -> Tensor:
        ids = self._whole
        count = len(ids) // self.window
        if count == 0:
            known = f"{self.source.name} has {len(ids)} tokens, too few for one window of {self.window}"
            raise GrouperError(f"{known}: give more text, or a smaller `window`")
        return torch.tensor(ids[: count * self.window]).view(count, self.window)

    def _sampled(self, limit: int) -> Tensor | None:
        """Windows [limit, window], one per stretch; None if a stretch has too few tokens."""
        size, most = self._documents.size, SPARSE * self.window // 2
        rows = []
        for k in range(limit):
            ids = self._ids(k * size // limit, (k + 1) * size // limit, most, self.window)
            if len(ids) < self.window:
                return None
            rows.append(torch.tensor(ids[: self.window]))
        return torch.stack(rows)

    def _ids(self, start: int, stop: int, most: int | None, enough: int | None = None) -> array:
        """Ids between two positions, tokenised in pieces of `most` bytes. enough: stop after this number of ids."""
        ids, tokenizer, blank = array("q"), self._load(), True
        for piece, ends in self._documents.pieces(start, stop, most):
            first = self._chained and start == 0 and not ids
            ids.extend(tokenizer(piece, add_special_tokens=first, verbose=False)["input_ids"])
            if self._chained and ends and tokenizer.eos_token_id is not None:
                ids.append(tokenizer.eos_token_id)
            blank = blank and not piece.strip()
            if enough is not None and len(ids) >= enough:
                break
        if blank and stop - start == self._documents.size:
            raise GrouperError(f"{self.source.name} holds no text: it is empty, or nothing but blanks")
        return ids


def check_sizes(window: int, limit: int | None) -> None:
    """Raise GrouperError for windows of fewer than 2 tokens, or for fewer than one window."""
    if window < 2 or (limit is not None and limit < 1):
        raise GrouperError(f"windows of {window} tokens, {limit} at most: expected at least 2 tokens and 1 window")


def spread(every: Several, limit: int) -> Several:
    """Selection of at most `limit` windows or examples, spread evenly over the text. every: a list, or any object that
    can be indexed by a tensor."""
    if limit >= len(every):
        return every
    rows = torch.linspace(0, len(every) - 1, limit).round().long()
    return [every[row] for row in rows.tolist()] if isinstance(every, list) else every[rows]


def shuffled_passes(n: int, size: int, steps: int, seed: int) -> Tensor:
    """Windows of each step [steps, size], taken from n windows in shuffled passes over all of them."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * size // n)
    flat = torch.cat([torch.randperm(n, generator=generator) for _ in range(passes)])
    return flat[: steps * size].view(steps, size)


def digest(tokens: Tensor | Batch) -> str:
    """Short hash of these tokens or examples."""
    return Batch.of(tokens).digest
