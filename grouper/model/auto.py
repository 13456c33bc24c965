"""Choice of the transformers Auto class that loads a model."""

from grouper.errors import GrouperError
from grouper.families.configuration import decoder_config, family_of
from grouper.families.family import Family

HEADS = {  # Auto class -> table of the transformers models that have it; BART is in several
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "AutoModelForMaskedImageModeling": "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES",
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForTextEncoding": "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
}


def auto_class(config: dict) -> str:
    """Name of the Auto class for the class that config.json says the model was saved from; AutoModel if there is none.

    >>> auto_class({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    'AutoModelForMaskedLM'
    """
    family = family_of(config)
    if not family.encodes:
        return "AutoModelForCausalLM" if decoder_config(config) is config else "AutoModelForImageTextToText"
    saved = next(iter(config.get("architectures") or []), None)
    if saved == f"{family.classes}ForPreTraining":  # has, among others, a head for masked tokens
        return "AutoModelForMaskedLM"
    return next((auto for auto, names in heads(family.model_type) if saved in names), "AutoModel")


def check_transformers(family: Family) -> None:
    """Raise GrouperError if the installed transformers is too old for this family."""
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__) < Version(family.since):
        installed = f"transformers {transformers.__version__} is installed"
        raise GrouperError(f"{family.model_type} models need transformers {family.since} or later, and {installed}")


def heads(model_type: str) -> list[tuple[str, tuple[str, ...]]]:
    """Auto classes of transformers for models of this type, each with the names of its classes."""
    from transformers.models.auto import modeling_auto

    found = []
    for auto, table in HEADS.items():
        names = getattr(modeling_auto, table).get(model_type, ())
        if names:
            found.append((auto, (names,) if isinstance(names, str) else tuple(names)))
    return found
