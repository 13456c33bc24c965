"""A small configuration of the same class: few layers but each kind of the model's, few heads, a small vocabulary, and
everything else as the model has it. Sizes differ from one another, so that a mistaken shape cannot pass."""

import copy
import re
from dataclasses import dataclass
from typing import Any

from grouper.errors import GrouperError
from grouper.families.configuration import ALIASES, configured

LAYERS, LONGEST, WINDOW, VOCABULARY, EXPERTS, IMAGE = 2, 128, 8, 199, 4, 16
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 2}
INNER = re.compile(r"intermediate_size|intermediate_dim|ffn_dim|ffn_hidden_size|n_inner|d_ff$|hidden_dim$|mlp_dim")
COUNTED = re.compile(r"(^|_)(num|n)_(local_|routed_|moe_|total_)*experts$|^moe_num_experts$|n_routed_experts$")
CHOSEN = re.compile(r"experts_per_tok|experts_per_token|moe_topk$|moe_top_k$|^top_?k$|num_selected_experts|moe_k$")
GROUPS = re.compile(r"^(n_group|topk_group|num_expert_groups?|n_groups)$")
EVERY = re.compile(r"interval|pattern|_step$|_freq|frequency|every|_period")
BASES = re.compile(r"rope_theta|rope_local_base_freq|rotary_emb_base|rotary_base")
BASE = 10_000.0  # of RoPE: with a larger one, the slowest planes of a short text hardly turn
LAYER_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
KINDS = 12  # of layers, at most
OF_LAYERS = ("out_features", "out_indices", "stage_names")  # of a backbone, which follow from the number of layers
BOTH_HEADS = ("encoder_attention_heads", "decoder_attention_heads")
NEUTRAL = (  # nothing of attention depends on these
    "initializer_range", "initializer_factor", "transformers_version", "_name_or_path", "torch_dtype", "dtype",
    "auto_map", "architectures", "id2label", "label2id",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Sizes of a small model. head_dim: None where the class computes it as hidden_size / query_heads."""

    query_heads: int
    kv_heads: int
    hidden_size: int
    head_dim: int | None

    @property
    def d(self) -> int:
        """Rows of a head."""
        return self.head_dim or self.hidden_size // self.query_heads

    def settings(self) -> dict[str, int]:
        """Settings that say so in a configuration."""
        found = {
            "num_attention_heads": self.query_heads, "num_key_value_heads": self.kv_heads,
            "hidden_size": self.hidden_size,
        }  # fmt: skip
        return found if self.head_dim is None else {**found, "head_dim": self.head_dim}


FREE, SQUARE, TIED = Sizes(8, 4, 96, 16), Sizes(8, 4, 128, 16), Sizes(8, 4, 128, None)
MULTI_HEAD = Sizes(8, 8, 128, None)
EVERY_SIZE = (FREE, SQUARE, TIED, MULTI_HEAD)  # the first that a class takes is used


def full_settings(model_type: str, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """All settings of a model, its class's defaults included, and the class's own names of settings (its
    attribute_map). Raises GrouperError if transformers has no such type, or does not take the configuration."""
    import transformers

    if model_type not in transformers.CONFIG_MAPPING:
        raise GrouperError(f"the installed transformers ({transformers.__version__}) has no models of this type")
    made = configured({**config, "model_type": model_type})
    return {**made.to_dict(), "model_type": model_type}, dict(type(made).attribute_map)


def small_config(full: dict[str, Any], names: dict[str, str], sizes: Sizes) -> dict[str, Any]:
    """Settings of a small model. full, names: see `full_settings`."""
    found = {key: copy.deepcopy(value) for key, value in full.items() if key not in (*NEUTRAL, *OF_LAYERS)}
    layers = next((full[n] for n in LAYER_COUNTS if isinstance(full.get(n), int)), LAYERS)
    kept = kept_layers(full, layers)
    for key, value in found.items():
        if isinstance(value, list) and len(value) == layers and layers > 1:
            found[key] = [value[i] for i in kept]
        elif key in LAYER_COUNTS or key == names.get("num_hidden_layers"):
            found[key] = len(kept)
        elif BASES.search(key) and isinstance(value, int | float):
            found[key] = min(value, BASE)
        elif isinstance(value, int) and not isinstance(value, bool):
            found[key] = _number(key, value, len(kept))
        elif key in ("image_size", "patch_size") and isinstance(value, list):
            found[key] = [_number(key, one, len(kept)) for one in value]
        elif key.startswith("rope_") and isinstance(value, dict):
            found[key] = _rope(value, sizes.d)
        elif key.endswith("_token_id") and isinstance(value, list):
            found[key] = TOKENS.get(key, 3)
    found |= {key: value for key, value in TOKENS.items() if key in found and found[key] is not None}
    wanted = {names.get(key, key): value for key, value in sizes.settings().items()}
    wanted |= {key: sizes.query_heads for key in BOTH_HEADS if key in full}
    wanted |= {name: sizes.d for name in ALIASES["head_dim"] if name in full}
    for alias in ("head_dim",) if sizes.head_dim is None else ():
        found.pop(names.get(alias, alias), None)
    return found | wanted


def kept_layers(full: dict[str, Any], layers: int) -> list[int]:
    """Layers to keep: the first of each kind, in their order, and at least two. The kind of a layer is its entry in all
    settings that have one for each layer, and its place in each pattern that repeats. Raises GrouperError for too many
    kinds."""
    lists = [v for v in full.values() if isinstance(v, list) and len(v) == layers and layers > 1]
    every = [v for k, v in full.items() if EVERY.search(k) and type(v) is int and 1 < v <= 8]
    first = [v for k, v in full.items() if k in ("first_k_dense_replace", "num_dense_layers") and type(v) is int]
    if (every or first) and not lists:
        return list(range(min(layers, max([*every, *(1 for _ in first), LAYERS]) + len(first))))
    seen: dict[str, int] = {}
    for i in range(layers):
        seen.setdefault(repr([one[i] for one in lists]), i)
    if len(seen) > KINDS:
        raise GrouperError(f"its layers are of {len(seen)} kinds, more than a small model can hold")
    kept = sorted(seen.values())
    return kept if len(kept) >= LAYERS else sorted({*kept, *range(min(LAYERS, layers))})


def _number(key: str, value: int, layers: int) -> int:
    """A whole number of the small model."""
    if key == "vocab_size":
        return VOCABULARY
    if key.endswith("_token_id") or key.endswith("_token_index"):
        return TOKENS.get(key, min(value, VOCABULARY - 1))
    if INNER.search(key):
        return min(value, 48)
    if COUNTED.search(key):
        return min(value, EXPERTS)
    if CHOSEN.search(key):
        return min(value, 2)
    if GROUPS.search(key):
        return 1
    if key in ("first_k_dense_replace", "num_dense_layers"):
        return min(value, 1)
    if "sliding_window" in key or key == "window_size":
        return min(value, WINDOW)
    if "max_position" in key or key in ("n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length"):
        return min(value, LONGEST)
    if key == "image_size":
        return min(value, IMAGE)
    if key == "patch_size":
        return min(value, IMAGE // 4)
    if key == "rotary_dim":
        return 8
    if key == "max_window_layers":
        return min(value, layers - 1)
    return value


def _rope(value: dict[str, Any], d: int) -> dict[str, Any]:
    """Parameters of RoPE, whose lists have an entry for each plane."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            found[key] = _rope(inner, d)
        elif isinstance(inner, list) and key.endswith("_factor"):
            share = value.get("partial_rotary_factor", 1.0)
            found[key] = inner[: int(d * share) // 2]
        elif key == "mrope_section" and isinstance(inner, list):
            found[key] = [d // 2 - 2 * (d // 8), d // 8, d // 8]
        elif key == "rope_theta":
            found[key] = min(inner, BASE)
        else:
            found[key] = inner
    return found
