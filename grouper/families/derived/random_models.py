"""Models of random weights, to try a class on."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from grouper.errors import GrouperError
from grouper.families.derived.classes import Classes
from grouper.model.loadable import quiet
from grouper.model.loading import refusing_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST = 30_000_000  # parameters of a small model


def make_heads_matter(model: nn.Module) -> None:
    """Draw weights large enough that every head counts, and gains and biases that are not trivial. Sinusoids, which are
    not kept, stay."""
    for name, parameter in model.named_parameters():
        if "embed_positions" in name and not parameter.requires_grad:
            continue
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
        else:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


def random_model(classes: Classes, settings: dict) -> "PreTrainedModel":
    """Model of this class in float64, the same on every call. Raises GrouperError if it is not small."""
    with quiet(), refusing_code(classes.model_type), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with torch.device("meta"):
            size = sum(p.numel() for p in _made(classes, settings).parameters())
        if size > LARGEST:
            raise GrouperError(f"a small model of its class has {size / 1e6:.0f} million parameters")
        model = _made(classes, settings)
        make_heads_matter(model)
    return model.eval().requires_grad_(False)


def _made(classes: Classes, settings: dict) -> "PreTrainedModel":
    config = classes.configured(settings)
    experts = {"experts_implementation": "eager"} if any("experts" in key for key in settings) else {}
    return classes.model._from_config(config, dtype=torch.float64, **experts)
