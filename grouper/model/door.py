"""What is let in: config.json with every field of its kind and size, and tensors that are what it implies, all checked
from configuration and headers alone, before a library sees them or room is made for them.
"""

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from grouper.errors import GrouperError
from grouper.model.configuration import ALIASES

if TYPE_CHECKING:
    from grouper.model.architecture import Architecture
    from grouper.model.checkpoint import Checkpoint

DEEPEST = 20  # objects within objects
FLOATS = ("F64", "F32", "F16", "BF16")
WHOLE = {  # least and most
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
    "decoder_attention_heads": (1, 4096),
}  # fmt: skip
NUMBERS = {
    "rms_norm_eps": (0, 1), "layer_norm_eps": (0, 1), "layer_norm_epsilon": (0, 1), "norm_epsilon": (0, 1),
    "norm_eps": (0, 1), "rope_theta": (1e-6, 1e15), "attention_dropout": (0, 1), "hidden_dropout": (0, 1),
    "partial_rotary_factor": (0, 1), "rotary_pct": (0, 1), "factor": (1e-6, 1e6), "initializer_range": (0, 1e3),
}  # fmt: skip
FLAGS = (
    "attention_bias", "mlp_bias", "use_sliding_window", "tie_word_embeddings", "alibi", "multi_query", "parallel_attn",
    "new_decoder_architecture", "use_parallel_residual", "do_layer_norm_before", "use_qkv_bias", "use_cache", "bias",
)  # fmt: skip
NAMES = ("model_type", "hidden_act", "activation_function", "dtype", "torch_dtype", "rope_type")
KERNELS = ("attn_implementation", "experts_implementation")
DTYPES = ("float64", "float32", "float16", "bfloat16")


def check_configuration(config: dict, name: str) -> None:
    """Raise GrouperError where a field of config.json is of the wrong kind or beyond all sizes that there are: with the
    field, its value, and what was expected. name: of the model."""

    def wrong(field: str, value: Any, expected: str) -> GrouperError:
        shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}..."
        return GrouperError(f"config.json of {name} has {field} {shown}: expected {expected}")

    names = {alias: field for field, aliases in ALIASES.items() for alias in aliases}
    for path, value in _fields(config, name):
        key = path.rpartition(".")[2]
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise wrong(path, value, "a finite number")
        if isinstance(value, int) and abs(value) > 2**62:
            raise wrong(path, value, "a number that a computer counts to")
        field = names.get(key, key)
        if field in WHOLE:
            least, most = WHOLE[field]
            if type(value) is not int or not least <= value <= most:
                raise wrong(path, value, f"a whole number from {least} to {most:,}")
        elif field in NUMBERS:
            least, most = NUMBERS[field]
            if type(value) not in (int, float) or not least <= value <= most:
                raise wrong(path, value, f"a number from {least:g} to {most:g}")
        elif field in FLAGS and type(value) is not bool:
            raise wrong(path, value, "true or false")
        elif field in NAMES and not isinstance(value, str):
            raise wrong(path, value, "a name")
        elif _public(field) in KERNELS and "/" in json.dumps(value):  # code of a repository on the Hub
            raise wrong(path, value, "the name of one that transformers has itself")
        if field in ("dtype", "torch_dtype") and value not in DTYPES:
            raise wrong(path, value, f"one of {', '.join(DTYPES)}")
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            _check_lists(part, wrong)


def _fields(value: dict, name: str, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(where, value) of every field, those of objects within included."""
    if depth > DEEPEST:
        raise GrouperError(f"config.json of {name} has objects within objects, more than {DEEPEST} deep: refused")
    for key, inner in value.items():
        where = f"{path}.{key}" if path else str(key)
        yield where, inner
        if isinstance(inner, dict):
            yield from _fields(inner, name, where, depth + 1)


def _public(field: str) -> str:
    return field.removeprefix("_").removesuffix("_internal")


def _check_lists(config: dict, wrong) -> None:
    """Lists with an entry for each layer, and the objects that positions are described by."""
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
        kind = list if key == "architectures" else dict
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise wrong(key, config[key], "a list of names" if kind is list else "an object")


def check_tensors(checkpoint: "Checkpoint", architecture: "Architecture") -> None:
    """Raise GrouperError where a tensor of attention is missing, is no floating point, or has another shape than
    config.json implies. Reads headers alone."""
    for name, expected, needed in _implied(checkpoint, architecture):
        if name not in checkpoint:
            if needed:
                raise GrouperError(f"{checkpoint.name} has no tensor {name}: is the checkpoint complete?")
            continue
        info = checkpoint.tensors[name]
        if info.dtype not in FLOATS:
            raise GrouperError(
                f"{name} of {checkpoint.name} is of type {info.dtype}: expected weights as one of {', '.join(FLOATS)} "
                "(dequantise a quantised model first)"
            )
        if info.shape != expected:
            raise GrouperError(
                f"{name} of {checkpoint.name} has shape {list(info.shape)}, where config.json implies {list(expected)}"
            )


def _implied(checkpoint: "Checkpoint", architecture: "Architecture") -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """(name, shape, whether it must be there) of every layer's attention tensors, norms among them."""
    a = architecture
    q, kv, hidden = a.query_heads * a.head_dim, a.kv_heads * a.head_dim, a.hidden_size
    for layer in range(a.layers):
        prefix, f = a.prefix(checkpoint, layer), a.family_of(layer)
        rows = {f.q: q + 2 * kv} if f.fused else {f.q: q, f.k: kv, f.v: kv}
        for module, count in rows.items():
            yield f"{prefix}{module}.weight", (hidden, count) if f.transposed else (count, hidden), True
            yield f"{prefix}{module}.bias", (count,), False
        yield f"{prefix}{f.o}.weight", (q, hidden) if f.transposed else (hidden, q), True
        yield f"{prefix}{f.o}.bias", (hidden,), False
        for norm in f.norm if a.family.parts else a.norms:
            yield f"{prefix}{norm}.weight", (hidden,), False
            yield f"{prefix}{norm}.bias", (hidden,), False
        if f.sinks is not None:
            yield f"{prefix}{f.sinks}", (a.query_heads,), True
        if f.qk_norm is not None:
            for norm, count in (("q_norm", q), ("k_norm", kv)):
                size = count if f.qk_norm == "all" else a.head_dim
                yield f"{prefix}{f.attention}.{norm}.weight", (size,), True
