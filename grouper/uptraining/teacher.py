"""Teacher: the original model, whose distribution and hidden states an exported model learns. It is in memory, perhaps
in bfloat16 or on another device, or streamed layer by layer from disk."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.families.configuration import decoder_config, setting
from grouper.families.sites import Place
from grouper.running.answers import answered, logits_of, pooled
from grouper.running.batch import Batch
from grouper.running.in_memory import InMemoryModel
from grouper.running.layers import Layers
from grouper.running.streamed import StreamedModel
from grouper.running.stub_layers import passed_on, stubs
from grouper.running.walk import Walk, room

TOKENIZER = "tokenizer.json"


class Answers(NamedTuple):
    """Answers of a model. logits: [n, places, classes]; None for a model without a head. hidden: stream after each
    layer [n, tokens, D], if asked for. vectors: [n, D], for a model without a head."""

    logits: Tensor | None
    hidden: list[Tensor]
    vectors: Tensor | None

    @classmethod
    def of(cls, output: Any, batch: Batch, hidden: list[Tensor], device: str | torch.device) -> "Answers":
        logits = logits_of(output, batch)
        vectors = pooled(output[0], batch.read).to(device) if logits is None else None
        return cls(None if logits is None else logits.to(device), [stream.to(device) for stream in hidden], vectors)


class Teacher:
    """The original model, asked for its answers. A streamed teacher must be given its examples in advance (see
    `prepare`): those of the next `ahead` steps."""

    ahead = 1

    def __init__(self, model: Layers):
        self.model = model

    def knows(self, batch: Batch) -> bool:
        """Whether these examples were prepared."""
        return True

    def prepare(self, batch: Batch) -> None:
        """Prepare these examples and forget all others."""
        return

    @torch.no_grad()
    def answers(self, batch: Batch, hidden: bool, device: str | torch.device) -> Answers:
        """Answers for a batch, on `device`. hidden: whether to return the streams after the layers."""
        with streams_behind(self.model, hidden) as streams:
            output = self._output(batch)
        return Answers.of(output, batch, streams, device)

    def _output(self, batch: Batch) -> Any:
        model = self.model
        return answered(model.model, batch, model.architecture, model.device, model.dtype)


class StreamedTeacher(Teacher):
    """Teacher that is read layer by layer. It walks once over all examples it is given, and keeps their streams: after
    every layer if hidden states are needed, else after the last."""

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
    """Bytes that identify each example."""
    given = [*batch.inputs.values(), *([] if batch.labels is None else [batch.labels])]
    return [b"".join(one[i].contiguous().numpy().tobytes() for one in given) for i in range(len(batch))]


@contextmanager
def streams_behind(model: Layers, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Yields a list that receives the residual stream after each layer, [n, tokens, D], of a forward pass within the
    `with`. wanted: False collects nothing."""
    streams: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    places = model.architecture.places if wanted else ()
    hooks = [model.layer(place[0].index).register_forward_hook(keep) for place in places]
    try:
        yield streams
    finally:
        for hook in hooks:
            hook.remove()


def masks_of(model: Layers, batch: Batch) -> list[Tensor | None]:
    """Masks of the streams after each layer: True at non-padding positions [n, tokens]; None if nothing is padded."""
    return [batch.written if place[0].stack else batch.read for place in model.architecture.places]


def open_teacher(
    checkpoint: Checkpoint, device: str, dtype: torch.dtype, memory: float, hidden: bool, step_tokens: int
) -> Teacher:
    """Load the teacher into memory if it fits `memory` (bytes). A larger one is streamed, for as many steps at a time
    as half of `memory` holds."""
    width = torch.finfo(dtype).bits // 8
    if width * checkpoint.parameters <= memory:
        return Teacher(InMemoryModel(checkpoint, device, dtype))
    a = Architecture.of(checkpoint.config)
    a_step = 4 * a.hidden_size * step_tokens * (a.layers + 1 if hidden else 2)
    return StreamedTeacher(StreamedModel(checkpoint, device), hidden, max(1, int(memory / 2 / a_step)))


def check_teacher(teacher: Checkpoint, base: Checkpoint) -> None:
    """Raise GrouperError if the teacher needs other inputs than the model, or has another vocabulary."""
    kinds = [Architecture.of(checkpoint.config).family for checkpoint in (teacher, base)]
    if kinds[0].reads != kinds[1].reads:
        raise GrouperError(
            f"{teacher.name} is a {kinds[0].model_type}, the exported model a {kinds[1].model_type}: a teacher needs "
            "to take the same inputs"
        )
    known = [_vocabulary(checkpoint) for checkpoint in (teacher, base)]
    if known[0] != known[1]:
        raise GrouperError(
            f"{teacher.name} knows {known[0]:,} tokens, the exported model {known[1]:,}: a teacher needs the same "
            "vocabulary"
        )
    sources = [c.source for c in (teacher, base) if TOKENIZER in c.source.files()]
    files = [file for file in (source.path(TOKENIZER) for source in sources) if file is not None]
    if len(files) == 2 and _words(files[0]) != _words(files[1]):
        raise GrouperError(f"{teacher.name} has another tokenizer than the exported model: a teacher needs the same")


def _vocabulary(checkpoint: Checkpoint) -> int | None:
    return setting(decoder_config(checkpoint.config), "vocab_size", None)


def _words(file: Path) -> object:
    """Vocabulary in a tokenizer.json; the file's bytes if it has another structure."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (ValueError, KeyError, TypeError):
        return file.read_bytes()
