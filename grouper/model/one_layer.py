"""Model of a single layer, cut from a larger one."""

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import save_file

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.families.architecture import Architecture

COUNTS = {  # names of the number of layers in configurations, also for an encoder or a decoder
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
}  # fmt: skip

LISTS = ("layer_types", "no_rope_layers", "kv_groups", "head_order", "query_of_head")  # with an entry for each layer
FIRST_DENSE = {"first_k_dense_replace", "num_dense_layers"}  # number of first layers without experts


def of_layer(config: dict, layer: int) -> dict:
    """Configuration of a model whose only layer is this one. In a model of several stacks, each stack has a single
    layer."""
    counts = dict.fromkeys(COUNTS & config.keys(), 1) or {"num_hidden_layers": 1}
    layers = next((config[key] for key in counts if isinstance(config.get(key), int)), None)
    config = {**config, **counts}
    for key, value in config.items():
        if isinstance(value, list) and (key in LISTS or len(value) == layers != 1) and len(value) > layer:
            config[key] = [value[layer]]
    if "kv_readers" in config:  # by place, with the layer's number in it
        here = {p: r for p, r in config["kv_readers"].items() if re.search(rf"\.{layer}\.", p)}
        config["kv_readers"] = {re.sub(rf"\.{layer}\.", ".0.", p, count=1): r for p, r in here.items()}
    for key in FIRST_DENSE & config.keys():
        if isinstance(config[key], int):
            config[key] = int(layer < config[key])
    if type(config.get("moe_layer_interval")) is int:  # ERNIE 4.5
        first, last = config.get("moe_layer_start_index", 0), config.get("moe_layer_end_index", -1)
        last = layers - 1 if last == -1 and isinstance(layers, int) else last
        sparse = first <= layer <= last and (layer + 1) % config["moe_layer_interval"] == 0
        config |= {"moe_layer_interval": 1, "moe_layer_start_index": int(not sparse), "moe_layer_end_index": 0}
    if "per_layer_config" in config:
        own = config["per_layer_config"].get(str(layer))
        config["per_layer_config"] = {"0": own} if own else {}
    if "decoder_sparse_step" in config:  # decides which layers have experts
        sparse = layer not in (config.get("mlp_only_layers") or []) and (layer + 1) % config["decoder_sparse_step"] == 0
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": [] if sparse else [0]}
    return config


def cut(checkpoint: Checkpoint, architecture: Architecture, layer: int, folder: Path) -> Checkpoint:
    """Write a model to `folder` whose only layer is `layer` of this one: embedding, that layer, last norm and head."""
    folder.mkdir()
    here, first = architecture.prefix(checkpoint, layer), architecture.prefix(checkpoint, 0)
    every = [architecture.prefix(checkpoint, other) for other in range(architecture.layers)]
    tensors = {}
    for name in checkpoint.tensors:
        if name.startswith(here):
            tensors[first + name.removeprefix(here)] = checkpoint.tensor(name).contiguous()
        elif not any(name.startswith(prefix) for prefix in every):
            tensors[name] = checkpoint.tensor(name).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = of_layer(checkpoint.config, layer)
    if isinstance(config.get("text_config"), dict) and architecture.nested:
        config["text_config"] = of_layer(config["text_config"], layer)
    (folder / "config.json").write_text(json.dumps(config))
    for file in checkpoint.folder.glob("modeling_ragged.py"):
        shutil.copyfile(file, folder / file.name)
    return Checkpoint.open(folder)
