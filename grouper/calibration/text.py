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
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError, as_one_line
from grouper.families.configuration import decoder_config, setting
from grouper.model.loading import load
from grouper.running.batch import Batch

Several = TypeVar("Several", Tensor, Batch, list)
WHOLE = 2**22  # bytes: a text of no more is tokenised whole, in one piece
SPARSE = 16  # bytes per token, hardly ever more
PIECE = 2**20  # bytes of a longer text that are tokenised at a time


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The model's own, of transformers."""
    with as_one_line(f"{checkpoint.name} has no tokenizer that transformers can load"):
        return load("AutoTokenizer", checkpoint.local().folder)


def text_of(
    checkpoint: Checkpoint, source: TextSource, window: int, limit: int | None = None, kept: KeptTokens | None = None
) -> Tensor:
    """[n, window] token ids, as `windows` cuts them, by the model's own tokenizer. kept: where they are looked for and
    kept. Raises GrouperError where the tokenizer knows tokens that the model has no embedding for."""
    return WindowedText.of(checkpoint, source, window, kept).spread(limit)


def check_known(checkpoint: Checkpoint, tokens: Tensor) -> None:
    """Raise GrouperError for ids that the model has no embedding for, and where there are none at all."""
    if not tokens.numel():
        raise GrouperError(f"the text gives no tokens for {checkpoint.name}: are its sources or targets empty?")
    known = setting(decoder_config(checkpoint.config), "vocab_size", None)
    if known is not None and int(tokens.max()) >= known:
        raise GrouperError(
            f"the tokenizer of {checkpoint.name} gives token {int(tokens.max())}, and the model knows {known}: do they "
            "belong together?"
        )


def windows(source: TextSource, tokenizer: Any, window: int, limit: int | None = None) -> Tensor:
    """[n, window] token ids: documents end to end, an end-of-text token between two, cut into windows that do not
    overlap.

    limit: windows at most, spread evenly over the text. Raises GrouperError where the text is shorter than one window.
    """
    return WindowedText(source, lambda: tokenizer, window).spread(limit)


class WindowedText:
    """A text in windows of one length, tokenised as far as windows are asked for.

    A text of up to WHOLE bytes, or of which most is asked for, is tokenised whole and cut into windows end to end. Of a
    longer one, n windows are the first ones in n stretches of equally many bytes: the rest is not read. The two cut
    differently, and each always in the same way.
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
        """tokenizer: loads it. chained: with the tokenizer's own tokens at the text's begin, and an end-of-text token
        after each document. reader: whose tokenizer it is, for messages. kept: where windows are kept, and the
        tokenizer's folder. check: raises GrouperError for tokens that the model does not know."""
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
        """By the model's own tokenizer. Raises GrouperError, now or later."""
        if source.images:
            raise GrouperError(f"{checkpoint.name} takes text: give `text=FILE`, not `images`")
        local = checkpoint.local()
        return cls(
            source, lambda: load_tokenizer(local), window, chained=chained,
            reader=f"the tokenizer of {checkpoint.name}", kept=None if kept is None else (kept, local.folder),
            check=partial(check_known, checkpoint),
        )  # fmt: skip

    def spread(self, limit: int | None = None) -> Tensor:
        """[n, window] ids: `limit` windows at most, spread evenly over the text; all of it without. Raises GrouperError
        where the text is shorter than one window."""
        check_sizes(self.window, limit)
        if limit not in self._read:
            path = self.source.path
            tokens = self._found(path, *self._kept, limit) if self._kept and path else self._tokenised(limit)
            self._check(tokens)
            self._read[limit] = tokens
        return self._read[limit]

    def around(self, used: int, limit: int) -> Tensor:
        """[n, window] ids: those of `spread(used)`, perhaps cut otherwise, and at least `limit` others where the text
        has so many."""
        parts = 1 + -(-limit // used)  # of each stretch, the first of which begins as it does
        if self.is_long(used * parts):
            every = self.spread(used * parts)
            if torch.equal(every[::parts], self.spread(used)):
                return every
        return self.spread()

    def is_long(self, limit: int | None) -> bool:
        """Whether so many windows are few of this text."""
        return limit is not None and self._documents.size > max(WHOLE, SPARSE * limit * self.window)

    @cached_property
    def _documents(self) -> Documents:
        return self.source.documents(self._load)

    def _found(self, text: Path, kept: KeptTokens, tokenizer: Path, limit: int | None) -> Tensor:
        """As `_tokenised`, unless it is kept."""
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
        """The same text in windows of another length. What was tokenised whole is not tokenised again."""
        check_sizes(window, None)
        other = copy.copy(self)
        other.window, other._read = window, {}
        vars(other).pop("_every", None)
        return other

    @cached_property
    def _whole(self) -> array:
        """Ids of all of it."""
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
        """[limit, window]; None where a stretch of the text has too few tokens."""
        size, most = self._documents.size, SPARSE * self.window // 2
        rows = []
        for k in range(limit):
            ids = self._ids(k * size // limit, (k + 1) * size // limit, most, self.window)
            if len(ids) < self.window:
                return None
            rows.append(torch.tensor(ids[: self.window]))
        return torch.stack(rows)

    def _ids(self, start: int, stop: int, most: int | None, enough: int | None = None) -> array:
        """Ids of the text between two places, tokenised in pieces of `most` bytes; `enough` of them, or more."""
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
    """Raise GrouperError for windows of fewer than 2 tokens, or fewer than one of them."""
    if window < 2 or (limit is not None and limit < 1):
        raise GrouperError(f"windows of {window} tokens, {limit} at most: expected at least 2 tokens and 1 window")


def spread(every: Several, limit: int) -> Several:
    """At most `limit` of the windows or examples, evenly over the text. every: whatever takes a tensor as index, or a
    list."""
    if limit >= len(every):
        return every
    rows = torch.linspace(0, len(every) - 1, limit).round().long()
    return [every[row] for row in rows.tolist()] if isinstance(every, list) else every[rows]


def shuffled_passes(n: int, size: int, steps: int, seed: int) -> Tensor:
    """[steps, size]: for each step the windows it sees, of n, in shuffled passes over all of them."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * size // n)
    flat = torch.cat([torch.randperm(n, generator=generator) for _ in range(passes)])
    return flat[: steps * size].view(steps, size)


def digest(tokens: Tensor | Batch) -> str:
    """A short name for these tokens or examples."""
    return Batch.of(tokens).digest
