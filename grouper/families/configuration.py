"""Settings of a model's config.json, under all names that are in use, with the defaults of its transformers class."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from grouper.errors import GrouperError, as_one_line
from grouper.families.decoders import FAMILIES, REFUSED, Family
from grouper.parsing import shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ALIASES = {  # names of a setting in older or other configurations
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "encoder_attention_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "hidden_size": ("n_embd", "n_embed", "d_model", "dim"), "head_dim": ("d_kv",),
    "num_hidden_layers": ("n_layer", "n_layers", "encoder_layers", "num_layers"),
    "decoder_layers": ("num_decoder_layers",),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length", "max_target_positions"),
}  # fmt: skip
TEXT_MODELS = {  # decoders inside vision-language models that belong to a family under another name
    "qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
}  # fmt: skip
PER_HEAD_NORMS = ("qk_layernorm", "use_qk_norm")  # Phi's and StableLM's; Command R+'s
WINDOWED = (
    "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "olmo3", "starcoder2",
    "smollm3", "phi3",
)  # fmt: skip
LLAVAS = ("llava", "llava_next", "llava_next_video", "video_llava", "vipllava")  # their decoder is a Llama by default
NOTHING = object()
PROOFS = "grouper.families.derived.known"
TRIED: dict[str, Family] = {}  # families under proof, by type


def decoder_config(config: dict) -> dict:
    """Part of the configuration that describes the decoder, under its family's name: text_config for a vision-language
    model."""
    text, model_type = config.get("text_config"), config.get("model_type")
    if isinstance(text, dict) and model_type not in FAMILIES:
        inner = text.get("model_type", "llama" if model_type in LLAVAS else "nothing")
        return {**text, "model_type": TEXT_MODELS.get(inner, inner)}
    return (
        {**config, "model_type": TEXT_MODELS[f"{model_type}_text"]} if f"{model_type}_text" in TEXT_MODELS else config
    )


OURS = "grouper_ragged_"  # start of the model_type of a ragged export


def is_known(config: dict) -> bool:
    """Whether models of this type, or exports of them, may be supported."""
    outer = config.get("model_type")
    if not isinstance(outer, str):
        return False
    types = (outer, decoder_config(config).get("model_type"))
    return not any(isinstance(t, str) and t.removeprefix(OURS) in REFUSED for t in types)


def family_of(config: dict) -> Family:
    """Family of the configuration. Raises GrouperError if the model's type is not supported."""
    outer = config.get("model_type")
    model_type = decoder_config(config).get("model_type")
    if model_type in TRIED:
        return TRIED[model_type]
    if not model_type:
        raise GrouperError(
            "config.json has no model_type: expected the configuration of a Hugging Face model, as save_pretrained() "
            "writes it"
        )
    for name in (model_type, outer):
        if name in REFUSED:
            raise GrouperError(f"models of type {name!r} cannot be regrouped: {REFUSED[name]}")
    if isinstance(config.get("text_config"), dict) and outer not in FAMILIES:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        if outer not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            why = "of those that hold a decoder, only vision-language models are"
            raise GrouperError(f"models of type {outer!r} are not supported: {why}")
    if model_type not in FAMILIES:
        return _derived(config)
    _check_encoder(config, model_type)
    for key in PER_HEAD_NORMS:
        if decoder_config(config).get(key):
            raise GrouperError(
                f"this {model_type} model has LayerNorms on q and k with gains for each head ({key}): not supported yet"
            )
    return FAMILIES[model_type]


@contextmanager
def trying(family: Family) -> Iterator[None]:
    """Take this family for its type until the block ends."""
    TRIED[family.model_type] = family
    try:
        yield
    finally:
        del TRIED[family.model_type]


def _derived(config: dict) -> Family:
    """Family of a type without an entry. Imported by name: a proof exports models, which reads configurations."""
    return import_module(PROOFS).family_for(decoder_config(config))


def how_supported(config: dict, family: Family) -> str:
    """Words for how this family is known: "" for an entry."""
    return import_module(PROOFS).how_proved(decoder_config(config)) if family.proved else ""


def _check_encoder(config: dict, model_type: str) -> None:
    """Raise GrouperError for an encoder whose configuration is not supported."""
    if not FAMILIES[model_type].encodes:
        return
    if not FAMILIES[model_type].parts and (config.get("is_decoder") or config.get("add_cross_attention")):
        raise GrouperError(
            f"this {model_type} model is a decoder (is_decoder): {model_type} is supported as an encoder"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        kind = config["position_embedding_type"]
        raise GrouperError(f"this {model_type} model has {kind} positions within attention: not supported")
    saved = str(next(iter(config.get("architectures") or []), ""))
    if FAMILIES[model_type].parts and saved.endswith(("EncoderModel", "ForCausalLM")):
        raise GrouperError(f"this {model_type} model is a {saved}, half of an encoder and a decoder: not supported")
    encoder, decoder = config.get("encoder_attention_heads"), config.get("decoder_attention_heads")
    if encoder != decoder:
        raise GrouperError(f"the encoder has {encoder} heads, the decoder {decoder}: expected the same number in both")


def setting(config: dict, key: str, otherwise: Any = NOTHING) -> Any:
    """Value of a setting, under any of its names, or the default of the transformers class."""
    for name in (key, *ALIASES.get(key, ())):
        if config.get(name) is not None:
            return config[name]
    if otherwise is not NOTHING and key in config:  # the configuration holds null
        return otherwise
    value = _default(config, key)
    if value is None and otherwise is NOTHING:
        raise GrouperError(f"config.json has no {key}, which a {config['model_type']} model needs")
    return otherwise if value is None else value


def configured(config: dict) -> "PretrainedConfig":
    """Configuration object that transformers builds from config.json. It gets a copy, because transformers edits it.
    Raises GrouperError if transformers refuses it."""
    from transformers import CONFIG_MAPPING

    with as_one_line("transformers does not take this config.json"):
        return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))


def _default(config: dict, key: str) -> Any:
    """Default of the transformers class for a missing value: the declared one (None if it depends on other values),
    else that of an instance with these sizes."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[config["model_type"]]
    declared = getattr(cls, key, NOTHING)
    if declared is not NOTHING and not isinstance(declared, property):
        return declared
    sizes: dict[str, Any] = {}
    for known in ("num_attention_heads", "hidden_size", "head_dim"):
        said = [config[name] for name in (known, *ALIASES[known]) if config.get(name) is not None]
        sizes |= {known: said[0]} if said else {}
    try:
        return getattr(cls(**sizes), key, None)
    except (ValueError, StrictDataclassError):  # sizes that are valid only together with others
        return getattr(cls(), key, None)


def rotary_dim(config: dict, family: Family, head_dim: int) -> int:
    """Number of rows of a head that RoPE rotates."""
    if family.rotary is None:
        return head_dim
    parameters = config.get("rope_parameters") or {}
    if family.rotary == "rotary_dim":
        return setting(config, "rotary_dim", None) or head_dim
    share = config.get(family.rotary) or parameters.get("partial_rotary_factor")
    if share is None:
        from transformers import CONFIG_MAPPING

        share = (getattr(CONFIG_MAPPING[family.model_type](), "rope_parameters", None) or {}).get(
            "partial_rotary_factor", 1.0
        )
    return int(share * head_dim)


def unrotated_layers(config: dict, layers: int, rule: str | None = None) -> frozenset[int]:
    """Layers without RoPE: in SmolLM3 every fourth one, unless its configuration lists others. rule: see
    Family.unrotated."""
    if rule == "full_attention":
        return frozenset(i for i, kind in enumerate(config["layer_types"]) if kind == rule)
    if config["model_type"] != "smollm3" and rule is None:
        return frozenset()
    has = config.get("no_rope_layers") or [
        int((i + 1) % config.get("no_rope_layer_interval", 4) != 0) for i in range(layers)
    ]
    return frozenset(i for i, rotated in enumerate(has) if not rotated)


def completed(config: dict) -> dict:
    """Configuration with all settings of its class, and sizes under their usual names."""
    made = configured(config)
    sizes = {key: getattr(made, key, None) for key in ALIASES}
    given = {key: value for key, value in config.items() if value is not None}
    return {**made.to_dict(), **given, **{key: value for key, value in sizes.items() if value is not None}}


def check_complete(config: dict) -> None:
    """Raise GrouperError if a decoder's configuration lacks values that transformers needs to run the model."""
    if config["model_type"] in ("t5", "mt5"):
        setting(config, "decoder_start_token_id")
    kinds = config.get("layer_types") or ()
    if strange := set(kinds) - {"full_attention", "sliding_attention"}:
        raise GrouperError(f"config.json has layers of {shown(min(strange))}: expected full or sliding attention")
    windowed = setting(config, "sliding_window", None) and config.get("use_sliding_window") is not False
    if "sliding_attention" in kinds and not windowed:
        raise GrouperError("config.json has layers of sliding_attention and no sliding_window: is it right?")


def sliding_windows(config: dict, layers: int, windowed: bool = False) -> tuple[int | None, ...]:
    """Number of tokens that the sliding window of each layer keeps; None for all. windowed: see Family.windowed."""
    windowed = windowed or config["model_type"] in WINDOWED
    window = setting(config, "sliding_window", None) if windowed else None
    if not window or setting(config, "use_sliding_window", True) is False:
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = getattr(configured(config), "layer_types", None)
    return tuple(window if kinds is None or kinds[i] == "sliding_attention" else None for i in range(layers))
