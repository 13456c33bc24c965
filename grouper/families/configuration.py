"""What a model's config.json says, under whatever names and with its class's defaults for what it leaves out."""

import copy
from typing import TYPE_CHECKING, Any

from grouper.errors import GrouperError, as_one_line
from grouper.families.decoders import FAMILIES, REFUSED, Family
from grouper.parsing import shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ALIASES = {  # what older or other configurations call it
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "encoder_attention_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "hidden_size": ("n_embd", "n_embed", "d_model", "dim"), "head_dim": ("d_kv",),
    "num_hidden_layers": ("n_layer", "n_layers", "encoder_layers", "num_layers"),
    "decoder_layers": ("num_decoder_layers",),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length", "max_target_positions"),
}  # fmt: skip
TEXT_MODELS = {  # decoders inside vision-language models that are a family under another name
    "qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
}  # fmt: skip
PER_HEAD_NORMS = ("qk_layernorm", "use_qk_norm")  # Phi's and StableLM's; Command R+'s
WINDOWED = (
    "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "olmo3", "starcoder2",
    "smollm3", "phi3",
)  # fmt: skip
LLAVAS = ("llava", "llava_next", "llava_next_video", "video_llava", "vipllava")  # whose decoder is a Llama, unsaid
NOTHING = object()


def decoder_config(config: dict) -> dict:
    """The part that describes the decoder, under its family's name: of a vision-language model its text_config."""
    text, model_type = config.get("text_config"), config.get("model_type")
    if isinstance(text, dict) and model_type not in FAMILIES:
        inner = text.get("model_type", "llama" if model_type in LLAVAS else "nothing")
        return {**text, "model_type": TEXT_MODELS.get(inner, inner)}
    return (
        {**config, "model_type": TEXT_MODELS[f"{model_type}_text"]} if f"{model_type}_text" in TEXT_MODELS else config
    )


OURS = "grouper_ragged_"  # how the model_type of a ragged export begins


def is_known(config: dict) -> bool:
    """Whether the model's type is one that can be regrouped, or an export of one."""
    outer = config.get("model_type")
    if not isinstance(outer, str):
        return False
    types = (outer, decoder_config(config).get("model_type"))
    return any(isinstance(t, str) and t.removeprefix(OURS) in FAMILIES for t in types)


def family_of(config: dict) -> Family:
    """Raises GrouperError where the model's type cannot be regrouped."""
    outer = config.get("model_type")
    model_type = decoder_config(config).get("model_type")
    if not model_type:
        raise GrouperError(
            "config.json has no model_type: expected the configuration of a Hugging Face model, as save_pretrained() "
            "writes it"
        )
    for name in (model_type, outer):
        if name in REFUSED:
            raise GrouperError(f"models of type {name!r} cannot be regrouped: {REFUSED[name]}")
    if model_type not in FAMILIES:
        raise GrouperError(f"models of type {model_type!r} are not supported; those that are: {', '.join(FAMILIES)}")
    if isinstance(config.get("text_config"), dict) and outer not in FAMILIES:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        if outer not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            why = "of those that hold a decoder, only vision-language models are"
            raise GrouperError(f"models of type {outer!r} are not supported: {why}")
    _check_encoder(config, model_type)
    for key in PER_HEAD_NORMS:
        if decoder_config(config).get(key):
            raise GrouperError(
                f"this {model_type} model has LayerNorms on q and k with gains for each head ({key}): not supported yet"
            )
    return FAMILIES[model_type]


def _check_encoder(config: dict, model_type: str) -> None:
    """Raise GrouperError for a configuration of an encoder that is none of ours."""
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
    """A value of the configuration, under any of its names, else the transformers class's own default."""
    for name in (key, *ALIASES.get(key, ())):
        if config.get(name) is not None:
            return config[name]
    if otherwise is not NOTHING and key in config:  # it says null
        return otherwise
    value = _default(config, key)
    if value is None and otherwise is NOTHING:
        raise GrouperError(f"config.json has no {key}, which a {config['model_type']} model needs")
    return otherwise if value is None else value


def configured(config: dict) -> "PretrainedConfig":
    """The object that transformers makes of config.json, which it edits; so it is given a copy. Raises GrouperError
    where transformers refuses it."""
    from transformers import CONFIG_MAPPING

    with as_one_line("transformers does not take this config.json"):
        return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))


def _default(config: dict, key: str) -> Any:
    """What the transformers class takes for a value that is left out: as it is declared (None where it follows from
    others), else what an instance with these sizes has."""
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
    except (ValueError, StrictDataclassError):  # sizes that go together with others alone
        return getattr(cls(), key, None)


def rotary_dim(config: dict, family: Family, head_dim: int) -> int:
    """How many rows of a head RoPE turns."""
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


def unrotated_layers(config: dict, layers: int) -> frozenset[int]:
    """SmolLM3 leaves RoPE out of every fourth layer, or where it says so."""
    if config["model_type"] != "smollm3":
        return frozenset()
    has = config.get("no_rope_layers") or [
        int((i + 1) % config.get("no_rope_layer_interval", 4) != 0) for i in range(layers)
    ]
    return frozenset(i for i, rotated in enumerate(has) if not rotated)


def check_complete(config: dict) -> None:
    """Raise GrouperError for a decoder's configuration that lacks what transformers needs when it runs."""
    if config["model_type"] in ("t5", "mt5"):
        setting(config, "decoder_start_token_id")
    kinds = config.get("layer_types") or ()
    if strange := set(kinds) - {"full_attention", "sliding_attention"}:
        raise GrouperError(f"config.json has layers of {shown(min(strange))}: expected full or sliding attention")
    windowed = setting(config, "sliding_window", None) and config.get("use_sliding_window") is not False
    if "sliding_attention" in kinds and not windowed:
        raise GrouperError("config.json has layers of sliding_attention and no sliding_window: is it right?")


def sliding_windows(config: dict, layers: int) -> tuple[int | None, ...]:
    """Per layer, the tokens that its window keeps."""
    window = setting(config, "sliding_window", None) if config["model_type"] in WINDOWED else None
    if not window or setting(config, "use_sliding_window", True) is False:
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = getattr(configured(config), "layer_types", None)
    return tuple(window if kinds is None or kinds[i] == "sliding_attention" else None for i in range(layers))
