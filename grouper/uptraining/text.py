"""Training text: examples, and which of their answers count."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grouper.calibration.documents import check_template
from grouper.calibration.reading import MOST_FILES, read_examples
from grouper.calibration.source import TextSource
from grouper.calibration.text import digest, load_tokenizer, spread, text_of
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError, as_one_line
from grouper.families.architecture import Architecture
from grouper.model.auto import auto_class
from grouper.running.answers import asked_of
from grouper.running.batch import IDS, Batch


@dataclass(frozen=True)
class TrainingText:
    """Examples for training.

    batch: windows of ids, or inputs of an encoder. counted: bool. For windows [n, window], True for tokens to learn:
    answers in chats, all tokens in plain text. For an encoder [n, places], True for answers that count.
    """

    batch: Batch
    counted: Tensor

    @classmethod
    def of(cls, batch: Batch, places: int) -> "TrainingText":
        """Training text of an encoder. places: number of answers per example."""
        every = torch.ones(len(batch), places, dtype=torch.bool)
        asked = asked_of(batch, every)
        return cls(batch, every if asked is None else asked)

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.batch.numel()

    def rows(self, rows: Tensor) -> "TrainingText":
        """A selection of the examples."""
        return TrainingText(self.batch[rows], self.counted[rows])

    @property
    def weights(self) -> Tensor:
        """True for answers that count [n, places]."""
        return self.counted if self.batch.windows is None else self.counted[:, 1:]

    @property
    def digests(self) -> list[str]:
        """Short names of the batch and of what counts in it."""
        return [self.batch.digest, digest(self.counted)]

    def spread(self, count: int) -> "TrainingText":
        """At most `count` of the examples, spread evenly."""
        return self.rows(spread(torch.arange(len(self)), count))

    def split(self, count: int, seen: Tensor | None = None) -> tuple["TrainingText", "TrainingText"]:
        """Split into (training, held out): `count` examples, spread over the text, are held out. seen: [n], bool,
        examples that must not be held out. Raises GrouperError if nothing would be left."""
        n = len(self)
        if n <= count:
            raise GrouperError(
                f"the text has {n} windows of {self.batch.tokens} tokens, and {count} are held out to judge by: give "
                "more text"
            )
        free = torch.arange(n) if seen is None else torch.arange(n)[~seen]
        held = torch.zeros(n, dtype=torch.bool)
        held[free[(torch.arange(count) * 2 + 1) * len(free) // (2 * count)]] = True
        return self.rows(~held), self.rows(held)


def text_for(checkpoint: Checkpoint, source: TextSource, window: int) -> TrainingText:
    """Read a training text for this model. For a decoder documents are tokenised end to end and cut into windows, each
    of which attends only to itself; in chats (`messages` in JSONL) only the assistant's words count."""
    architecture = Architecture.of(checkpoint.config)
    if architecture.family.reads != "windows" or source.images:  # for images, windows raise an error
        batch = read_examples(checkpoint, source, window, MOST_FILES if source.images else None)
        return TrainingText.of(batch, places_of(checkpoint, batch))
    chats = source.chats()
    if chats is None:
        tokens = text_of(checkpoint, source, window)
        return TrainingText(Batch.of(tokens), torch.ones_like(tokens, dtype=torch.bool))
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
    return TrainingText(Batch.of(cut(ids)), cut(counted))


def places_of(checkpoint: Checkpoint, batch: Batch) -> int:
    """Number of answers per example: one for a class or a vector, two for the begin and end of a span, else one per
    token."""
    if batch.labels is not None:
        return 1 if batch.labels.ndim == 1 else batch.labels.shape[1]
    auto = auto_class(checkpoint.config)
    by_token = auto in ("AutoModelForMaskedLM", "AutoModelForTokenClassification")
    return batch.inputs[IDS].shape[1] if by_token else 2 if auto == "AutoModelForQuestionAnswering" else 1


def of_chat(tokenizer: Any, messages: list[dict]) -> tuple[list[int], list[bool]]:
    """Ids of a chat, and for each whether it belongs to an answer: the tokens that the template adds for an assistant's
    message after the prompt for it. If a template writes earlier messages differently once later ones follow, all
    tokens count."""
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
