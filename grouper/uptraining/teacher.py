"""The original, whose distribution and hidden states an exported model learns: in memory, perhaps in bfloat16 or on
another device, or streamed layer by layer from disk."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grouper.errors import GrouperError
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.model.configuration import decoder_config, setting
from grouper.model.site import Place
from grouper.running.answers import answered, logits_of, pooled
from grouper.running.batch import Batch
from grouper.running.in_memory import InMemoryModel
from grouper.running.layers import Layers
from grouper.running.streamed import StreamedModel
from grouper.running.stub_layers import passed_on, stubs
from grouper.running.walk import Walk, room

TOKENIZER = "tokenizer.json"


class Answers(NamedTuple):
    """logits [n, places, classes], None of a model without a head. hidden: the stream behind each layer [n, tokens, D],
    if it was wanted. vectors [n, D]: of a model without a head."""

    logits: Tensor | None
    hidden: list[Tensor]
    vectors: Tensor | None

    @classmethod
    def of(cls, output: Any, batch: Batch, hidden: list[Tensor], device: str | torch.device) -> "Answers":
        logits = logits_of(output, batch)
        vectors = pooled(output[0], batch.read).to(device) if logits is None else None
        return cls(None if logits is None else logits.to(device), [stream.to(device) for stream in hidden], vectors)


class Teacher:
    """Asked for batches by `answers`. One that is streamed wants to be told beforehand which examples come (see
    `prepare`), as many as `ahead` steps have."""

    ahead = 1

    def __init__(self, model: Layers):
        self.model = model

    def knows(self, batch: Batch) -> bool:
        """Whether these examples can be asked for now."""
        return True

    def prepare(self, batch: Batch) -> None:
        """Make it so for these examples, and for no others."""
        return

    @torch.no_grad()
    def answers(self, batch: Batch, hidden: bool, device: str | torch.device) -> Answers:
        """hidden: whether the streams behind the layers are wanted. device: where the answers are."""
        with streams_behind(self.model, hidden) as streams:
            output = self._output(batch)
        return Answers.of(output, batch, streams, device)

    def _output(self, batch: Batch) -> Any:
        model = self.model
        return answered(model.model, batch, model.architecture, model.device, model.dtype)


class StreamedTeacher(Teacher):
    """Walks its layers once for all examples that it is told of, and keeps their streams: behind every layer if hidden
    states will be wanted."""

    def __init__(self, model: StreamedModel, hidden: bool, ahead: int):
        super().__init__(model)
        self.hidden, self.ahead = hidden, ahead
        self.places: dict[bytes, int] = {}
        self.streams: list[Tensor] = []

    def knows(self, batch: Batch) -> bool:
        return all(key in self.places for key in _keys(batch))

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        self.streams, walk = [], Walk(self.model, batch, 1)
        self.places = {key: place for place, key in enumerate(_keys(batch))}
        for step in walk:
            with step.loaded() as module:
                step.advance(module)
            if self.hidden or step.sites == self.model.architecture.places[-1]:
                self.streams.append(room(walk.stream.shape, "cpu").copy_(walk.stream))

    @torch.no_grad()
    def answers(self, batch: Batch, hidden: bool, device: str | torch.device) -> Answers:
        places = [self.places[key] for key in _keys(batch)]
        streams, stack = [stream[places] for stream in self.streams], self.model.architecture.places[-1][0].stack
        last = streams[-1].to(self.model.device)

        def instead(place: Place, inputs: tuple, named: dict[str, Any]) -> Tensor:
            return last if place[0].stack == stack else passed_on(place, inputs, named)

        with stubs(self.model, instead):
            output = self._output(batch)
        return Answers.of(output, batch, streams if hidden else [], device)


def _keys(batch: Batch) -> list[bytes]:
    """By which examples are known."""
    given = [*batch.inputs.values(), *([] if batch.labels is None else [batch.labels])]
    return [b"".join(one[i].contiguous().numpy().tobytes() for one in given) for i in range(len(batch))]


@contextmanager
def streams_behind(model: Layers, wanted: bool = True) -> Iterator[list[Tensor]]:
    """The residual streams behind the layers [n, tokens, D] of the pass that is made in the block."""
    streams: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    places = model.architecture.places if wanted else ()
    hooks = [model.layer(place[0].index).register_forward_hook(keep) for place in places]
    try:
        yield streams
    finally:
        for hook in hooks:
            hook.remove()


def masks_of(model: Layers, batch: Batch) -> list[Tensor | None]:
    """Of the streams behind each layer, what is no filling [n, tokens]; None where all is."""
    return [batch.written if place[0].stack else batch.read for place in model.architecture.places]


def open_teacher(
    checkpoint: Checkpoint, device: str, dtype: torch.dtype, memory: float, hidden: bool, step_tokens: int
) -> Teacher:
    """In memory where `memory` (bytes) holds it, else streamed: as many steps at a time as half of `memory` has room
    for."""
    width = torch.finfo(dtype).bits // 8
    if width * checkpoint.parameters <= memory:
        return Teacher(InMemoryModel(checkpoint, device, dtype))
    a = Architecture.of(checkpoint.config)
    a_step = 4 * a.hidden_size * step_tokens * (a.layers + 1 if hidden else 2)
    return StreamedTeacher(StreamedModel(checkpoint, device), hidden, max(1, int(memory / 2 / a_step)))


def check_teacher(teacher: Checkpoint, base: Checkpoint) -> None:
    """Raise GrouperError where the teacher speaks of other tokens than the model."""
    known = [_vocabulary(checkpoint) for checkpoint in (teacher, base)]
    if known[0] != known[1]:
        raise GrouperError(
            f"{teacher.name} knows {known[0]:,} tokens, the exported model {known[1]:,}: a teacher needs the same "
            "vocabulary"
        )
    files = [c.source.path(TOKENIZER) for c in (teacher, base) if TOKENIZER in c.source.files()]
    if len(files) == 2 and _words(files[0]) != _words(files[1]):
        raise GrouperError(f"{teacher.name} has another tokenizer than the exported model: a teacher needs the same")


def _vocabulary(checkpoint: Checkpoint) -> int | None:
    return setting(decoder_config(checkpoint.config), "vocab_size", None)


def _words(file: Path) -> object:
    """What a tokenizer.json knows; the file itself where it says that otherwise."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (ValueError, KeyError, TypeError):
        return file.read_bytes()
