"""A model of a hundred numbers in training, with all that a training asks of a student, a teacher and accelerate."""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from grouper.layout import HeadLayout
from grouper.ranks import ALONE, Ranks
from grouper.uptraining.teacher import Teacher

VOCABULARY, WIDTH, LAYERS = 7, 4, 2
LAYOUT = HeadLayout.from_labels([[0, 1]] * LAYERS, 2, 2)


class Block(nn.Linear):
    def forward(self, stream: Tensor) -> tuple[Tensor]:
        return (stream + super().forward(stream).tanh(),)


class Toy(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        generator = torch.Generator().manual_seed(seed)  # its own: ranks that are threads make models at once
        for parameter in self.parameters():
            parameter.data.normal_(std=0.5, generator=generator)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> CausalLMOutput:
        return CausalLMOutput(logits=self.head(self.streams(input_ids)[-1]))

    def streams(self, tokens: Tensor) -> list[Tensor]:
        """Behind each block."""
        found = [self.embedding(tokens)]
        for block in self.blocks:
            found.append(block(found[-1])[0])
        return found[1:]

    def get_output_embeddings(self) -> nn.Module:
        return self.head


class Loaded:
    """As far as streams are asked of it."""

    def __init__(self, model: Toy):
        self.model, self.device, self.dtype = model, "cpu", torch.float32
        self.architecture = SimpleNamespace(
            layers=LAYERS, hidden_size=WIDTH, family=SimpleNamespace(parts=()),
            places=[[SimpleNamespace(index=layer, stack=0)] for layer in range(LAYERS)],
        )  # fmt: skip

    def layer(self, layer: int) -> nn.Module:
        return self.model.blocks[layer]


class ToyStudent:
    def __init__(self, seed: int = 0):
        self.model, self.layout, self.attentions = Toy(seed), LAYOUT, []
        self.loaded = Loaded(self.model)
        self.architecture = self.loaded.architecture

    def trained(self):
        return self.model.named_parameters()

    def buffers(self) -> dict[str, Tensor]:
        return {}

    def state(self, kept: bool = True) -> dict[str, Tensor]:
        return {f"weight.{n}": p.detach().clone() for n, p in self.trained()}

    @torch.no_grad()
    def put(self, tensors: dict[str, Tensor], layout: str) -> None:
        assert layout == LAYOUT.to_json()
        for name, parameter in self.trained():
            parameter.copy_(tensors[f"weight.{name}"])


def toy_teacher(seed: int = 1) -> Teacher:
    return Teacher(Loaded(Toy(seed)))


class ToyAccelerator:
    """Gradients of several ranks become their mean with the last pass of a step, as accelerate has it."""

    device = torch.device("cpu")

    def __init__(self, ranks: Ranks = ALONE):
        self.ranks, self.alone, self.logged = ranks, False, []

    def prepare(self, model: nn.Module, optimizer):
        self.model = model
        return model, optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        if not self.alone and not self.ranks.alone:
            for parameter in self.model.parameters():
                self.ranks.add_up(parameter.grad)
                parameter.grad /= self.ranks.size

    @contextmanager
    def no_sync(self, model: nn.Module):
        assert model is self.model
        self.alone = True
        yield
        self.alone = False

    def log(self, values: dict, step: int) -> None:
        self.logged.append((step, values))
