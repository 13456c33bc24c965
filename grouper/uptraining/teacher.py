"""The original, whose distribution and hidden states an exported model learns: in memory, perhaps in bfloat16 or on
another device, or streamed layer by layer from disk."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from grouper.calibration.streams import first_inputs, room, run_layer, stubs
from grouper.errors import GrouperError
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.model.configuration import decoder_config, setting
from grouper.model.in_memory import InMemoryModel
from grouper.model.layers import Layers
from grouper.model.streamed import StreamedModel

TOKENIZER = "tokenizer.json"


class Teacher:
    """Asked for windows of tokens by `logits_and_hidden`. One that is streamed wants to be told beforehand which (see
    `prepare`), as many as `ahead` steps have."""

    ahead = 1

    def __init__(self, model: Layers):
        self.model = model

    def knows(self, tokens: Tensor) -> bool:
        """Whether these windows [n, window] can be asked for now."""
        return True

    def prepare(self, tokens: Tensor) -> None:
        """Make it so for these windows, and for no others."""
        return

    @torch.no_grad()
    def logits_and_hidden(self, tokens: Tensor, hidden: bool) -> tuple[Tensor, list[Tensor]]:
        """Logits [windows, tokens, vocabulary] and, if wanted, the stream behind each layer [windows, tokens, D], where
        `tokens` are."""
        with streams_behind(self.model, hidden) as streams:
            logits = self.model.model(input_ids=tokens.to(self.model.device), use_cache=False).logits
        return logits.to(tokens.device), [stream.to(tokens.device) for stream in streams]


class StreamedTeacher(Teacher):
    """Walks its layers once for all windows that it is told of, and keeps their streams: behind every layer if hidden
    states will be wanted."""

    def __init__(self, model: StreamedModel, hidden: bool, ahead: int):
        super().__init__(model)
        self.hidden, self.ahead = hidden, ahead
        self.places: dict[bytes, int] = {}
        self.streams: list[Tensor] = []

    def knows(self, tokens: Tensor) -> bool:
        return all(key in self.places for key in _keys(tokens))

    @torch.no_grad()
    def prepare(self, tokens: Tensor) -> None:
        model, self.streams = self.model, []
        self.places = {key: place for place, key in enumerate(_keys(tokens))}
        stream, arguments = first_inputs(model, tokens, model.device)
        for layer, given in enumerate(arguments):
            with model.loaded(layer) as block:
                for part in range(len(tokens)):
                    one = slice(part, part + 1)
                    stream[one] = run_layer(block, stream[one].to(model.device), given).to(stream)
            if self.hidden or layer + 1 == len(arguments):
                self.streams.append(room(stream.shape, "cpu").copy_(stream))

    @torch.no_grad()
    def logits_and_hidden(self, tokens: Tensor, hidden: bool) -> tuple[Tensor, list[Tensor]]:
        places = [self.places[key] for key in _keys(tokens)]
        streams = [stream[places] for stream in self.streams]
        last = streams[-1].to(self.model.device)
        with stubs(self.model, lambda _layer, _inputs, _named: last):
            logits = self.model.model(input_ids=tokens.to(self.model.device), use_cache=False).logits
        return logits.to(tokens.device), [stream.to(tokens.device) for stream in streams] if hidden else []


def _keys(tokens: Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in tokens.cpu()]


@contextmanager
def streams_behind(model: Layers, wanted: bool = True) -> Iterator[list[Tensor]]:
    """The residual streams behind the layers [windows, tokens, D] of the pass that is made in the block."""
    streams: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    layers = range(model.architecture.layers if wanted else 0)
    hooks = [model.layer(layer).register_forward_hook(keep) for layer in layers]
    try:
        yield streams
    finally:
        for hook in hooks:
            hook.remove()


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
