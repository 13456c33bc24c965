"""Class of the installed transformers that a model type names. Code that comes with a model is never looked at."""

import copy
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grouper.errors import GrouperError
from grouper.model.auto import heads

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DECODERS = "AutoModelForCausalLM"
BOTH = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")


@dataclass(frozen=True)
class Classes:
    """Classes of a model type. auto: Auto class of `model`. model: the class, with its usual head. kind: "decoder",
    "encoder", or "both" (an encoder and a decoder)."""

    model_type: str
    auto: str
    model: type["PreTrainedModel"]
    config: type["PretrainedConfig"]
    kind: str

    @property
    def module(self) -> Any:
        """Module of transformers that defines the class."""
        return sys.modules[self.model.__module__]

    def configured(self, config: dict) -> "PretrainedConfig":
        """Configuration object. It gets a copy, because transformers edits it."""
        return self.config.from_dict(copy.deepcopy(config))


def class_of(model_type: str) -> Classes:
    """Classes of a model type. Raises GrouperError if the installed transformers has none that loads it."""
    import transformers

    for kind, auto, names in _choices(model_type):
        model = getattr(transformers, names[0], None)
        if model is not None:
            return Classes(model_type, auto, model, transformers.CONFIG_MAPPING[model_type], kind)
    raise GrouperError("the installed transformers has a configuration of this type, but no model")


Choices = list[tuple[str, str, tuple[str, ...]]]


def _choices(model_type: str) -> Choices:
    """Kind, Auto class and names of classes, the preferred one first. A type with a head for masked tokens is an
    encoder, although BERT and others can also be decoders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found, causal = dict(heads(model_type)), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    choices: Choices = [("both", auto, found[auto]) for auto in BOTH if auto in found]
    encoders: Choices = [("encoder", auto, names) for auto, names in found.items() if auto not in BOTH]
    decoders: Choices = [("decoder", DECODERS, (causal,))] if isinstance(causal, str) else []
    masked = "AutoModelForMaskedLM" in found
    return choices + (encoders + decoders if masked else decoders + encoders)
