"""Text as tokens, in windows of one length."""

import hashlib

import torch
from torch import Tensor

from grouper.calibration.examples import Examples
from grouper.calibration.source import TextSource
from grouper.errors import GrouperError, as_one_line
from grouper.model.checkpoint import Checkpoint
from grouper.model.configuration import decoder_config, setting
from grouper.model.loading import load


def load_tokenizer(checkpoint: Checkpoint):
    with as_one_line(f"{checkpoint.name} has no tokenizer that transformers can load"):
        return load("AutoTokenizer", checkpoint.local().folder)


def text_of(checkpoint: Checkpoint, source: TextSource, window: int, limit: int | None = None) -> Tensor:
    """[n, window] token ids, as `windows` cuts them, by the model's own tokenizer. Raises GrouperError where it knows
    tokens that the model has no embedding for."""
    if source.images:
        raise GrouperError(f"{checkpoint.name} takes text: give --text FILE, not --images")
    tokenizer = load_tokenizer(checkpoint)
    with as_one_line(f"the tokenizer of {checkpoint.name} cannot read {source.name}"):
        tokens = windows(source, tokenizer, window, limit)
    check_known(checkpoint, tokens)
    return tokens


def check_known(checkpoint: Checkpoint, tokens: Tensor) -> None:
    """Raise GrouperError for ids that the model has no embedding for."""
    known = setting(decoder_config(checkpoint.config), "vocab_size", None)
    if known is not None and int(tokens.max()) >= known:
        raise GrouperError(
            f"the tokenizer of {checkpoint.name} gives token {int(tokens.max())}, and the model knows {known}: do they "
            "belong together?"
        )


def windows(source: TextSource, tokenizer, window: int, limit: int | None = None) -> Tensor:
    """[n, window] token ids: documents end to end, an end-of-text token between two, cut into windows that do not
    overlap.

    limit: windows at most, spread evenly over the text. Raises GrouperError where the text is shorter than one window.
    """
    check_sizes(window, limit)
    ids: list[int] = []
    for document in source.documents(tokenizer):
        ids += tokenizer(document, add_special_tokens=not ids, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
    count = len(ids) // window
    if count == 0:
        raise GrouperError(
            f"{source.name} has {len(ids)} tokens, too few for one window of {window}: give more text or --window"
        )
    every = torch.tensor(ids[: count * window]).view(count, window)
    return every if limit is None else spread(every, limit)


def check_sizes(window: int, limit: int | None) -> None:
    """Raise GrouperError for windows of fewer than 2 tokens, or fewer than one of them."""
    if window < 2 or (limit is not None and limit < 1):
        raise GrouperError(f"windows of {window} tokens, {limit} at most: expected at least 2 tokens and 1 window")


def spread(every, limit: int):
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


def digest(tokens: "Tensor | Examples") -> str:
    """A short name for these tokens or examples."""
    if isinstance(tokens, Examples):
        return tokens.digest
    return hashlib.sha256(tokens.to(torch.int64).numpy().tobytes()).hexdigest()[:16]
