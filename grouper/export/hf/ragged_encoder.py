"""`ragged` for encoders, and encoders with a decoder: a modelling file of their own travels with the weights
(modeling_ragged_encoder.py)."""

import re
from pathlib import Path

from grouper.layout import HeadLayout
from grouper.model.architecture import Architecture
from grouper.model.auto import auto_class, heads
from grouper.model.families import FAMILIES

SOURCE = "modeling_ragged_encoder.py"


def encoder_config(config: dict, architecture: Architecture, layout: HeadLayout) -> dict:
    """config.json: who reads which KV head, for each attention by its place in the class."""
    places = [_place(architecture, layer) for layer in range(architecture.layers)]
    readers = {place: one.k.readers for place, one in zip(places, layout.layers)}
    shared = {place: one for place, one in zip(places, layout.layers) if one.q is not None}
    queries = {place: one.q.group_of[one.k.reader_order].tolist() for place, one in shared.items()}
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
        "model_type": f"grouper_ragged_{model_type}", "kv_readers": readers,
        **({"query_of_head": queries} if queries else {}),
    }  # fmt: skip


def _place(architecture: Architecture, layer: int) -> str:
    """Of the module that calls attention's kernel, within the model without its head."""
    site = architecture.sites[layer]
    family = site.storage.in_class
    return family.layer.format(layer=site.layer) + family.q.rpartition(".")[0]


def encoder_file(architecture: Architecture) -> str:
    """The source of modeling_ragged.py on this family's classes."""
    ours = architecture.family_of(0).in_class
    source = Path(__file__).with_name(SOURCE).read_text(encoding="utf-8")
    template = FAMILIES["bert"]
    for old, new in (
        (f"models.{template.model_type}", f"models.{ours.model_type}"),
        (f"modeling_{template.model_type}", f"modeling_{ours.model_type}"),
        (f"configuration_{template.model_type}", f"configuration_{ours.model_type}"),
        (f"grouper_ragged_{template.model_type}", f"grouper_ragged_{ours.model_type}"),
        (f"{template.classes}Config", f"{ours.classes}Config"),
        (f"A {template.classes} model", f"A {ours.classes} model"),
    ):
        source = re.sub(rf"\b{old}\b", new, source)
    source = source.replace("transformers 5.0 or later", f"transformers {ours.since} or later")
    names = [path.rpartition(".")[2] for path in (ours.q, ours.k, ours.v)]
    source = source.replace('("query", "key", "value")', "({})".format(", ".join(f'"{n}"' for n in names)))
    classes = dict.fromkeys(name for _, several in heads(ours.model_type) for name in several)
    lines = "\n".join(f"Ragged{name} = ragged(base.{name})" for name in classes)
    return source.replace(f"Ragged{template.classes}Model = ragged(base.{template.classes}Model)", lines)
