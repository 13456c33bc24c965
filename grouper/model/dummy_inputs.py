"""Random inputs for a model, without text, images or audio, and the answer in its outputs."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from grouper.families.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

EXAMPLES = 2
PIXELS, SAMPLES = 32, 4000  # of images whose model does not say, and of sounds


def random_inputs(model: "PreTrainedModel", architecture: Architecture, tokens: int) -> dict[str, Tensor]:
    """Two examples of the model's inputs, the same on every call: ids, pixels or audio features, and ids for the
    decoder of an encoder-decoder."""
    tokens = min(tokens, architecture.context - 4) if architecture.context else tokens
    return inputs_of(model, tokens, tokens if architecture.family.parts else 0)


def inputs_of(model: "PreTrainedModel", tokens: int, written: int = 0) -> dict[str, Tensor]:
    """Two examples of the model's inputs. written: number of ids for the decoder of an encoder-decoder."""
    generator, config = torch.Generator().manual_seed(0), model.config

    def ids(count: int) -> Tensor:
        known = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
        return torch.randint(0, known, (EXAMPLES, count), generator=generator)

    def begun() -> Tensor:
        """Ids that begin with a decoder's start token."""
        start = torch.full((EXAMPLES, 1), model.config.decoder_start_token_id or 0)
        return torch.cat([start, ids(written)[:, 1:]], dim=1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(EXAMPLES, *shape, generator=generator).to(model.dtype)

    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", PIXELS)
        size = tuple(size) if isinstance(size, list) else size
        return {"pixel_values": numbers(config.num_channels, *((size, size) if isinstance(size, int) else size))}
    if model.main_input_name == "input_features":
        sounds = numbers(config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": sounds, "decoder_input_ids": begun()}
    if model.main_input_name == "input_values":
        return {"input_values": numbers(SAMPLES)}
    return {"input_ids": ids(tokens), **({"decoder_input_ids": begun()} if written else {})}


def answer(outputs: "ModelOutput") -> Tensor:
    """Logits, or the last layer's output if the model has no head."""
    for name in ("logits", "start_logits", "last_hidden_state"):
        if outputs.get(name) is not None:
            return outputs[name]
    return outputs[0]
