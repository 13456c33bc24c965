"""Contents of config.json for `ragged` encoders and encoder-decoders."""

from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.model.auto import auto_class, heads


def encoder_config(config: dict, architecture: Architecture, layout: HeadLayout) -> dict:
    """Contents of config.json for these layouts, with the classes that load it."""
    auto_map, model_type = {"AutoConfig": "modeling_ragged.RaggedConfig"}, architecture.family.model_type
    for auto, classes in heads(model_type):
        auto_map[auto] = f"modeling_ragged.Ragged{classes[0]}"
    auto = auto_class(config)
    saved = next(iter(config.get("architectures") or []), None)
    known = next(classes for name, classes in heads(model_type) if name == auto)
    saved = saved if saved in known else known[0]
    auto_map[auto] = f"modeling_ragged.Ragged{saved}"
    return {
        **config, "architectures": [f"Ragged{saved}"], "auto_map": auto_map,
        "model_type": f"grouper_ragged_{model_type}", **readers_by_place(architecture, layout),
    }  # fmt: skip


def readers_by_place(architecture: Architecture, layout: HeadLayout) -> dict:
    """Settings with the readers of each KV head, for each attention by its place in the class."""
    places = [_place(architecture, layer) for layer in range(architecture.layers)]
    queries = {
        place: one.q.group_of[one.k.reader_order].tolist()
        for place, one in zip(places, layout.layers)
        if one.q is not None
    }
    readers = {place: one.k.readers for place, one in zip(places, layout.layers)}
    return {"kv_readers": readers, **({"query_of_head": queries} if queries else {})}


def _place(architecture: Architecture, layer: int) -> str:
    """Path of the module that calls the attention kernel, within the model without its head."""
    site = architecture.sites[layer]
    family = site.family.in_class
    return family.layer.format(layer=site.layer) + family.storage.q.rpartition(".")[0]
