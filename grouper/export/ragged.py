"""`ragged`: KV heads per layer, groups of any size: a small modelling file travels with the weights."""

from pathlib import Path

from grouper.architectures import Architecture
from grouper.layout import HeadLayout, LayerLayout

SOURCE = Path(__file__).with_name("modeling_ragged.py")
FILE = "modeling_ragged.py"
BASES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}


def modelling_file(model_type: str) -> str:
    """The source of modeling_ragged.py on this family's classes."""
    return SOURCE.read_text(encoding="utf-8").replace("Llama", BASES[model_type]).replace("llama", model_type)


def ragged_config(config: dict, architecture: Architecture, layout: HeadLayout, qkv_bias: bool, o_bias: bool) -> dict:
    """config.json of the exported model. kv_groups, and query_of_head where queries are shared, are what the modelling file reads,
    per_layer_config what serving engines do."""
    sizes = [list(layer.k.sizes) for layer in layout.layers]
    most = max(map(len, sizes))
    per_layer = {}
    for index, groups in enumerate(sizes):
        heads = {"num_attention_heads": len(groups) * max(groups), "num_key_value_heads": len(groups)}
        if heads != {"num_attention_heads": architecture.query_heads, "num_key_value_heads": most}:
            per_layer[str(index)] = heads
    names = {"AutoConfig": "RaggedConfig", "AutoModel": "RaggedModel", "AutoModelForCausalLM": "RaggedForCausalLM"}
    shared = {}
    if any(layer.q for layer in layout.layers):
        shared["query_of_head"] = [query_of_head(layer) for layer in layout.layers]
    return {
        **config, **shared, "architectures": ["RaggedForCausalLM"], "auto_map": {k: f"modeling_ragged.{v}" for k, v in names.items()},
        "model_type": f"grouper_ragged_{config['model_type']}", "head_dim": architecture.head_dim, "num_key_value_heads": most,
        "kv_groups": sizes, "qkv_bias": qkv_bias, "o_bias": o_bias, "per_layer_config": per_layer,
    }  # fmt: skip


def query_of_head(layer: LayerLayout) -> list[int]:
    """For each attention output, in the order of the KV groups, the query projection that it takes."""
    order = [head for readers in layer.k.readers for head in readers]
    return list(range(len(order))) if layer.q is None else layer.q.group_of[order].tolist()
