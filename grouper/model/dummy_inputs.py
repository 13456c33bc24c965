"""Random inputs for a model, without text, images or audio, and the answer in its outputs."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from grouper.families.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

EXAMPLES = 2


def random_inputs(model: "PreTrainedModel", architecture: Architecture, tokens: int) -> dict[str, Tensor]:
    """Two examples of the model's inputs, the same on every call: ids, pixels or audio features, and ids for the
    decoder of an encoder-decoder."""
    generator = torch.Generator().manual_seed(0)
    embedding, config = cast(nn.Embedding, model.get_input_embeddings()), model.config
    tokens = min(tokens, architecture.context - 4) if architecture.context else tokens

    def ids() -> Tensor:
        return torch.randint(0, embedding.num_embeddings, (EXAMPLES, tokens), generator=generator)

    def begun() -> Tensor:
        """Ids that begin with a decoder's start token."""
        return torch.cat([torch.full((EXAMPLES, 1), model.config.decoder_start_token_id or 0), ids()[:, 1:]], dim=1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(EXAMPLES, *shape, generator=generator).to(model.dtype)

    if model.main_input_name == "pixel_values":
        size = config.image_size
        return {"pixel_values": numbers(config.num_channels, *((size, size) if isinstance(size, int) else size))}
    if model.main_input_name == "input_features":
        sounds = numbers(config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": sounds, "decoder_input_ids": begun()}
    return {"input_ids": ids(), **({"decoder_input_ids": begun()} if architecture.family.parts else {})}


def answer(outputs: "ModelOutput") -> Tensor:
    """Logits, or the last layer's output if the model has no head."""
    for name in ("logits", "start_logits", "last_hidden_state"):
        if outputs.get(name) is not None:
            return outputs[name]
    return outputs[0]
