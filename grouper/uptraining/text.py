"""What is trained on: windows of tokens, which of them count, and what is held out to judge by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grouper.calibration.documents import check_template
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer, spread, text_of
from grouper.errors import GrouperError, as_one_line
from grouper.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Examples:
    """tokens [n, window]: ids. counted [n, window]: whether a token is to be learnt; that of an answer in chats, every
    one in plain text."""

    tokens: Tensor
    counted: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def of(self, rows: Tensor) -> "Examples":
        """rows: which windows."""
        return Examples(self.tokens[rows], self.counted[rows])

    def spread(self, count: int) -> "Examples":
        """At most so many of the windows, spread evenly."""
        return self.of(spread(torch.arange(len(self)), count))

    def split(self, count: int, seen: Tensor | None = None) -> tuple["Examples", "Examples"]:
        """(for training, held out): `count` windows, spread over the text, are held out. seen [n], bool: windows that
        are not. Raises GrouperError where nothing would be left."""
        n, window = self.tokens.shape
        if n <= count:
            raise GrouperError(
                f"the text has {n} windows of {window} tokens, and {count} are held out to judge by: give more text"
            )
        free = torch.arange(n) if seen is None else torch.arange(n)[~seen]
        held = torch.zeros(n, dtype=torch.bool)
        held[free[(torch.arange(count) * 2 + 1) * len(free) // (2 * count)]] = True
        return self.of(~held), self.of(held)


def examples_of(checkpoint: Checkpoint, source: TextSource, window: int) -> Examples:
    """By the model's own tokenizer, documents end to end; a window attends to itself alone. Of chats (`messages` in
    JSONL) the assistant's words count."""
    chats = source.chats()
    if chats is None:
        tokens = text_of(checkpoint, source, window)
        return Examples(tokens, torch.ones_like(tokens, dtype=torch.bool))
    tokenizer = load_tokenizer(checkpoint)
    check_template(tokenizer, source.name)
    ids: list[int] = []
    counted: list[bool] = []
    for messages in chats:
        with as_one_line(f"the chat template of {checkpoint.name} cannot write the chats of {source.name}"):
            more, answers = of_chat(tokenizer, messages)
        ids += more
        counted += answers
    n = len(ids) // window
    if n == 0:
        raise GrouperError(f"{source.name} has {len(ids)} tokens, too few for one window of {window}: give more chats")
    cut = lambda values: torch.tensor(values[: n * window]).view(n, window)  # noqa: E731
    return Examples(cut(ids), cut(counted))


def of_chat(tokenizer, messages: list[dict]) -> tuple[list[int], list[bool]]:
    """(ids, whether each is of an answer): what the template adds for an assistant's message beyond the prompt for it.
    Where a template writes earlier messages otherwise once there are later ones, all tokens count."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for i, message in enumerate(messages):
        if message.get("role") == "assistant":
            before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
            if not (text.startswith(whole) and whole.startswith(before)):
                spans = [(0, len(text))]
                break
            spans.append((len(before), len(whole)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = encoded["offset_mapping"]
    return encoded["input_ids"], [any(a <= begin < b for a, b in spans) for begin, _ in places]
