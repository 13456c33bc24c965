"""Text as tokens, in windows of one length."""

import hashlib

import torch
from torch import Tensor

from grouper.calibration.source import TextSource
from grouper.errors import GrouperError
from grouper.model.checkpoint import Checkpoint


def load_tokenizer(checkpoint: Checkpoint):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.local().folder)
    except Exception as error:  # transformers raises whatever its backends do
        raise GrouperError(
            f"{checkpoint.name} has no tokenizer that transformers can load ({type(error).__name__})"
        ) from error


def windows(source: TextSource, tokenizer, window: int, limit: int | None = None) -> Tensor:
    """[n, window] token ids: documents end to end, an end-of-text token between two, cut into windows that do not
    overlap.

    limit: windows at most, spread evenly over the text. Raises GrouperError where the text is shorter than one window.
    """
    if window < 2 or (limit is not None and limit < 1):
        raise GrouperError(f"windows of {window} tokens, {limit} at most: expected at least 2 tokens and 1 window")
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


def spread(every: Tensor, limit: int) -> Tensor:
    """At most `limit` of the windows, evenly over the text."""
    return every[torch.linspace(0, len(every) - 1, limit).round().long()] if limit < len(every) else every


def digest(tokens: Tensor) -> str:
    """A short name for these tokens."""
    return hashlib.sha256(tokens.to(torch.int64).numpy().tobytes()).hexdigest()[:16]
