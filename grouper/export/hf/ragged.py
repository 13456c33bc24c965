"""`ragged`: KV heads per layer, groups of any size: a small modelling file travels with the weights.

Classes that compute q, k and v for themselves and leave the rest to an attention function take theirs through that (modeling_ragged.py); older ones
get an attention of our own (modeling_ragged_plain.py).
"""

import re
from pathlib import Path

from grouper.errors import GrouperError
from grouper.layout import HeadLayout, LayerLayout
from grouper.model.architecture import Architecture
from grouper.model.families import FAMILIES, Family

FILE = "modeling_ragged.py"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")  # of our own attention
TEMPLATE = FAMILIES["llama"], FAMILIES["bloom"]  # the classes in the two files


def is_plain(architecture: Architecture) -> bool:
    """Whether it needs an attention of our own."""
    return not architecture.family.stock and not architecture.as_phi


def refusal(architecture: Architecture, layout: HeadLayout) -> str | None:
    """Why there is no ragged model of this, or None."""
    if architecture.nested:
        return "there is no modelling file for vision-language models: take a layout of class stock"
    if any(layer.q for layer in layout.layers):
        if is_plain(architecture) or architecture.family.fused:
            return (
                f"there is no modelling file for {architecture.family.model_type} models that share query projections"
            )
        if architecture.family.qk_norm == "all":
            return "its norm across all query heads does not go with shared query projections"
    return None


def modelling_file(architecture: Architecture) -> str:
    """The source of modeling_ragged.py on this family's classes."""
    plain = is_plain(architecture)
    source = Path(__file__).with_name("modeling_ragged_plain.py" if plain else FILE).read_text(encoding="utf-8")
    theirs, ours = TEMPLATE[plain], FAMILIES["phi"] if architecture.as_phi else architecture.family
    for old, new in zip(_names(theirs), _names(ours)):
        source = re.sub(rf"\b{old}\b", new, source)
    return source


def _names(family: Family) -> list[str]:
    """Modules and classes of transformers that a modelling file names."""
    module, c = family.model_type.removesuffix("_text"), family.classes
    return [
        f"models.{module}", f"configuration_{module}", f"modeling_{module}", f"grouper_ragged_{family.model_type}", f"{c}Attention",
        family.config_class or f"{c}Config", family.model_class or f"{c}Model", family.causal_lm, f"A {c} model",
    ]  # fmt: skip


def ragged_config(config: dict, architecture: Architecture, layout: HeadLayout, qkv_bias: bool, o_bias: bool) -> dict:
    """config.json of the exported model. kv_groups, and query_of_head where queries are shared, are what the modelling file reads,
    per_layer_config what serving engines do."""
    sizes = [list(layer.k.sizes) for layer in layout.layers]
    most = max(map(len, sizes))
    names = {"AutoConfig": "RaggedConfig", "AutoModel": "RaggedModel", "AutoModelForCausalLM": "RaggedForCausalLM"}
    common = {
        "architectures": ["RaggedForCausalLM"], "auto_map": {k: f"modeling_ragged.{v}" for k, v in names.items()},
        "model_type": f"grouper_ragged_{config['model_type']}", "kv_groups": sizes,
    }  # fmt: skip
    if is_plain(architecture):
        order = [[head for readers in layer.k.readers for head in readers] for layer in layout.layers]
        return {**config, **common, "head_order": order, "qkv_bias": qkv_bias, "o_bias": o_bias}
    per_layer = {}
    for index, groups in enumerate(sizes):
        heads = {"num_attention_heads": len(groups) * max(groups), "num_key_value_heads": len(groups)}
        if heads != {"num_attention_heads": architecture.query_heads, "num_key_value_heads": most}:
            per_layer[str(index)] = heads
    shared = {}
    if any(layer.q for layer in layout.layers):
        shared["query_of_head"] = [query_of_head(layer) for layer in layout.layers]
    return {
        **config, **shared, **common, "head_dim": architecture.head_dim, "num_key_value_heads": most, "per_layer_config": per_layer,
    }  # fmt: skip


def query_of_head(layer: LayerLayout) -> list[int]:
    """For each attention output, in the order of the KV groups, the query projection that it takes."""
    order = [head for readers in layer.k.readers for head in readers]
    return list(range(len(order))) if layer.q is None else layer.q.group_of[order].tolist()


def check(architecture: Architecture, layout: HeadLayout) -> None:
    why = refusal(architecture, layout)
    if why:
        raise GrouperError(f"this layout would be written as ragged, but {why}")
