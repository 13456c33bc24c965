"""What a model's config.json says, under whatever names and with its class's defaults for what it leaves out."""

from functools import lru_cache
from typing import Any

from grouper.errors import GrouperError
from grouper.families import FAMILIES, REFUSED, Family

ALIASES = {  # what older or other configurations call it
    "num_attention_heads": ("n_head", "n_heads"), "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers"), "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}  # fmt: skip
TEXT_MODELS = {  # decoders inside vision-language models that are a family under another name
    "qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
}  # fmt: skip
PER_HEAD_NORMS = ("qk_layernorm", "use_qk_norm")  # Persimmon's, StableLM 2 12B's and Command R+'s
NOTHING = object()


def decoder_config(config: dict) -> dict:
    """The part that describes the decoder, under its family's name: of a vision-language model its text_config."""
    text, model_type = config.get("text_config"), config.get("model_type")
    if isinstance(text, dict) and model_type not in FAMILIES:
        inner = text.get("model_type", "llama")
        return {**text, "model_type": TEXT_MODELS.get(inner, inner)}
    return {**config, "model_type": TEXT_MODELS[f"{model_type}_text"]} if f"{model_type}_text" in TEXT_MODELS else config


def family_of(config: dict) -> Family:
    """Raises GrouperError where the model's type cannot be regrouped."""
    outer = config.get("model_type", "nothing")
    model_type = decoder_config(config).get("model_type") or "nothing"
    for name in (model_type, outer):
        if name in REFUSED:
            raise GrouperError(f"models of type {name!r} cannot be regrouped: {REFUSED[name]}")
    if model_type not in FAMILIES:
        raise GrouperError(f"models of type {model_type!r} are not supported; those that are: {', '.join(FAMILIES)}")
    for key in PER_HEAD_NORMS:
        if decoder_config(config).get(key):
            raise GrouperError(f"this {model_type} model has LayerNorms on q and k with gains for each head ({key}): not supported yet")
    return FAMILIES[model_type]


def setting(config: dict, key: str, otherwise: Any = NOTHING) -> Any:
    """A value of the configuration, under any of its names, else the transformers class's own default."""
    for name in (key, *ALIASES.get(key, ())):
        if config.get(name) is not None:
            return config[name]
    if otherwise is not NOTHING and key in config:  # it says null
        return otherwise
    value = getattr(_defaults(config["model_type"]), key, None)
    if value is None and otherwise is NOTHING:
        raise GrouperError(f"config.json has no {key}, which a {config['model_type']} model needs")
    return otherwise if value is None else value


@lru_cache
def _defaults(model_type: str):
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]()


def rotary_dim(config: dict, family: Family, head_dim: int) -> int:
    """How many rows of a head RoPE turns."""
    if family.rotary is None:
        return head_dim
    parameters = config.get("rope_parameters") or {}
    if family.rotary == "rotary_dim":
        return setting(config, "rotary_dim", None) or head_dim
    share = config.get(family.rotary) or parameters.get("partial_rotary_factor")
    if share is None:
        share = (getattr(_defaults(family.model_type), "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    return int(share * head_dim)


def unrotated_layers(config: dict, layers: int) -> frozenset[int]:
    """SmolLM3 leaves RoPE out of every fourth layer, or where it says so."""
    if config["model_type"] != "smollm3":
        return frozenset()
    has = config.get("no_rope_layers") or [int((i + 1) % config.get("no_rope_layer_interval", 4) != 0) for i in range(layers)]
    return frozenset(i for i, rotated in enumerate(has) if not rotated)


def sliding_windows(config: dict, layers: int) -> tuple[int | None, ...]:
    """Per layer, the tokens that its window keeps."""
    window = config.get("sliding_window")
    if config["model_type"] in ("gemma2", "gemma3_text", "olmo3") and "sliding_window" not in config:
        window = getattr(_defaults(config["model_type"]), "sliding_window", None)
    if not window or config.get("use_sliding_window", True) is False:
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None and config["model_type"] not in ("mistral", "mixtral", "phi3", "starcoder2"):
        from transformers import CONFIG_MAPPING

        kinds = getattr(CONFIG_MAPPING[config["model_type"]](**config), "layer_types", None)
    return tuple(window if kinds is None or kinds[i] == "sliding_attention" else None for i in range(layers))
