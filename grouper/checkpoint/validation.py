"""Check of config.json: every field must have the expected kind and size, before a library reads it or memory is
allocated for it. header_check.py compares tensors with it."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from grouper.errors import GrouperError
from grouper.families.configuration import ALIASES, is_known
from grouper.parsing import shown

FACTS = "grouper"  # field in which an export records how it was made
DEEPEST = 20  # most nested objects
MOST_LABELS = 10**6  # transformers makes a name for each, in every part of a model
WHOLE = {  # least and largest value
    "num_attention_heads": (1, 4096), "num_key_value_heads": (1, 4096), "head_dim": (1, 8192),
    "hidden_size": (1, 1_000_000), "num_hidden_layers": (1, 10_000), "max_position_embeddings": (1, 10**9),
    "vocab_size": (1, 10**8), "intermediate_size": (1, 10**8), "ffn_dim": (1, 10**8), "n_inner": (1, 10**8),
    "sliding_window": (0, 10**9), "max_window_layers": (0, 10_000), "rotary_dim": (1, 8192),
    "word_embed_proj_dim": (1, 1_000_000), "num_local_experts": (1, 10_000), "num_experts": (0, 10_000),
    "num_experts_per_tok": (0, 10_000), "moe_intermediate_size": (1, 10**8),
    "shared_expert_intermediate_size": (0, 10**8), "no_rope_layer_interval": (1, 10_000),
    "num_ln_in_parallel_attn": (1, 2), "decoder_layers": (1, 10_000), "encoder_ffn_dim": (1, 10**8),
    "decoder_ffn_dim": (1, 10**8), "d_ff": (1, 10**8), "hidden_dim": (1, 10**8), "type_vocab_size": (0, 10**8),
    "patch_size": (1, 10_000), "num_channels": (1, 10_000), "num_mel_bins": (1, 10_000),
    "max_source_positions": (1, 10**9), "relative_attention_num_buckets": (1, 10**6),
    "decoder_attention_heads": (1, 4096), "decoder_start_token_id": (0, 10**8), "chunk_size_feed_forward": (0, 1),
}  # fmt: skip
NUMBERS = {
    "rms_norm_eps": (0, 1), "layer_norm_eps": (0, 1), "layer_norm_epsilon": (0, 1), "norm_epsilon": (0, 1),
    "norm_eps": (0, 1), "rope_theta": (1e-6, 1e15), "attention_dropout": (0, 1), "hidden_dropout": (0, 1),
    "partial_rotary_factor": (0, 1), "rotary_pct": (0, 1), "factor": (1e-6, 1e6), "initializer_range": (0, 1e3),
    **dict.fromkeys(("residual_multiplier", "attention_multiplier", "embedding_multiplier"), (-1e6, 1e6)),
    **dict.fromkeys(("logits_scaling", "logit_scale", "query_pre_attn_scalar"), (1e-6, 1e9)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (1e-6, 1e9)),
}  # fmt: skip
FLAGS = (
    "attention_bias", "mlp_bias", "use_sliding_window", "tie_word_embeddings", "alibi", "multi_query", "parallel_attn",
    "new_decoder_architecture", "use_parallel_residual", "do_layer_norm_before", "use_qkv_bias", "use_cache", "bias",
)  # fmt: skip
NAMES = ("model_type", "hidden_act", "activation_function", "dtype", "torch_dtype", "rope_type")
KERNELS = ("attn_implementation", "experts_implementation")
DTYPES = ("float64", "float32", "float16", "bfloat16")


def check_configuration(config: dict, name: str) -> None:
    """Raise GrouperError if a field of config.json has the wrong kind or an impossible size. The message names the
    field, its value and the expected one. name: name of the model."""

    def wrong(field: str, value: Any, expected: str) -> GrouperError:
        return GrouperError(f"config.json of {name} has {field} {shown(value)}: expected {expected}")

    names = {alias: field for field, aliases in ALIASES.items() for alias in aliases}
    known = is_known(config)
    for path, value in _fields(config, name):
        within, _, key = path.rpartition(".")
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise wrong(path, value, "a finite number")
        if isinstance(value, int) and abs(value) > 2**62:
            raise wrong(path, value, "an integer below 2**62")
        if key == "num_labels" and (type(value) is not int or not 0 <= value <= MOST_LABELS):
            raise wrong(path, value, f"a whole number from 0 to {MOST_LABELS:,}")
        field = names.get(key, key)
        if field != "model_type" and (not known or _of_another_part(within)):
            continue  # fields that only transformers reads, or a model type that is refused anyway
        if field in WHOLE:
            least, most = WHOLE[field]
            if type(value) is not int or not least <= value <= most:
                raise wrong(path, value, f"a whole number from {least} to {most:,}")
        elif field in NUMBERS:
            lowest, highest = NUMBERS[field]
            if type(value) not in (int, float) or not lowest <= value <= highest:
                raise wrong(path, value, f"a number from {lowest:g} to {highest:g}")
        elif field in FLAGS and type(value) is not bool:
            raise wrong(path, value, "true or false")
        elif field == "return_dict" and value is not True:  # transformers would return tuples instead of outputs
            raise wrong(path, value, "true, or no such field")
        elif field in NAMES and not isinstance(value, str):
            raise wrong(path, value, "a name")
        elif field == "id2label" and not _are_labels(value):
            raise wrong(path, value, 'an object with a name for each number, like {"0": "no", "1": "yes"}')
        elif _public(field) in KERNELS and "/" in json.dumps(value):  # code in a repository on the Hub
            raise wrong(path, value, "the name of one that transformers has itself")
        if field in ("dtype", "torch_dtype") and value not in DTYPES:
            raise wrong(path, value, f"one of {', '.join(DTYPES)}")
    for part in (config, config.get("text_config")) if known else ():
        if isinstance(part, dict):
            _check_lists(part, wrong)


def _of_another_part(path: str) -> bool:
    """Whether these fields describe something other than the decoder, such as an image tower or how an export was made.
    A field of the same name may then have another kind."""
    parts = path.split(".")
    return parts[0] == FACTS or any(part.endswith("_config") and part != "text_config" for part in parts)


def _fields(value: dict | list, name: str, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Path and value of every field and entry, nested objects and lists included."""
    if depth > DEEPEST:
        raise GrouperError(f"config.json of {name} has objects within objects, more than {DEEPEST} deep: refused")
    if isinstance(value, dict):
        pairs = [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
    else:
        pairs = [(f"{path}[{place}]", inner) for place, inner in enumerate(value)]
    for where, inner in pairs:
        yield where, inner
        if isinstance(inner, dict | list):
            yield from _fields(inner, name, where, depth + 1)


def _are_labels(value: Any) -> bool:
    """Whether these are class names by number. JSON writes the numbers as text."""
    return isinstance(value, dict) and all(
        isinstance(label, str) and str(number).isdecimal() and len(str(number)) < 10 for number, label in value.items()
    )


def _public(field: str) -> str:
    return field.removeprefix("_").removesuffix("_internal")


def _check_lists(config: dict, wrong: Callable[[str, Any, str], GrouperError]) -> None:
    """Check lists with one entry per layer, and the objects that describe positions."""
    counts = [config.get(key) for key in ("num_hidden_layers", *ALIASES["num_hidden_layers"])]
    layers = next((count for count in counts if isinstance(count, int)), None)
    for key, kind, what in (("layer_types", str, "names"), ("no_rope_layers", int, "numbers")):
        value = config.get(key)
        if not value and value in (None, []):
            continue
        if not isinstance(value, list) or not all(type(v) is kind for v in value):
            raise wrong(key, value, f"a list of {what}, one for each layer")
        if layers is not None and len(value) != layers:
            raise wrong(key, value, f"{layers} entries, one for each layer; it has {len(value)}")
    for key in ("rope_parameters", "rope_scaling", "text_config", "architectures"):
        listed = key == "architectures"
        if config.get(key) is not None and not isinstance(config[key], list if listed else dict):
            raise wrong(key, config[key], "a list of names" if listed else "an object")
