"""Export class `ragged`: KV heads per layer and groups of any size, with a small modelling file next to the weights.

Classes that compute q, k and v themselves and call an attention function for the rest get a function of our own
(modeling_ragged.py). Older classes get an attention of our own (modeling_ragged_plain.py). ragged_encoder.py writes
config.json for encoders.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from grouper.attention import Attention
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.export.hf.engines import NOT_IN_TRANSFORMERS_4
from grouper.export.hf.export_class import ExportClass
from grouper.export.hf.ragged_encoder import encoder_config, readers_by_place
from grouper.export.hf.stock import grouped_order, head_order
from grouper.families.architecture import Architecture
from grouper.families.decoders import FAMILIES, Family
from grouper.families.storage import Fused, Separate, Storage
from grouper.layout import HeadLayout, LayerLayout
from grouper.model.auto import heads

FILE, PLAIN_FILE, REPEATED_FILE = (
    "modeling_ragged.py", "modeling_ragged_plain.py", "modeling_ragged_repeated.py",
)  # fmt: skip
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")  # of our own attention
TEMPLATE = FAMILIES["llama"], FAMILIES["bloom"]  # classes in the two modelling files


class Ragged(ExportClass):
    name = "ragged"
    own_code = True

    def refusal(
        self, checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float
    ) -> str | None:
        if not architecture.family.ragged:
            return f"groups of unequal sizes were not proved for {architecture.family.model_type} models"
        if architecture.nested:
            return "there is no modelling file for vision-language models: take a layout of class stock"
        shares = any(layer.q for layer in layout.layers)
        if shares and _repeats(architecture.family_of(0)):
            return "a class that wants as many K heads as query heads does not go with shared query projections"
        if shares and not architecture.encodes:
            if architecture.replaced or not architecture.family.storage.shares_queries:
                models = f"{architecture.family.model_type} models"
                return f"there is no modelling file for {models} that share query projections"
            if architecture.family.qk_norm == "all":
                return "its norm across all query heads does not go with shared query projections"
        return None

    def arranged(self, attention: Attention, layer: int, layout: HeadLayout, config: dict) -> Attention:
        return grouped_order(attention, layout.layers[layer])

    def read(self, exported: Checkpoint, original: Checkpoint, layer: int, layout: HeadLayout) -> Attention:
        one, architecture = layout.layers[layer], as_written(Architecture.of(original.config))
        architecture = replace(architecture, kv_heads=one.k.kv_heads)
        return head_order(architecture.read(exported, layer, one.query_heads), one)

    def tensors(
        self, architecture: Architecture, prefix: str, attention: Attention, layer: int
    ) -> Iterator[tuple[str, Tensor]]:
        return as_written(architecture).tensors(prefix, attention, layer)

    def config(self, config: dict, architecture: Architecture, layout: HeadLayout, names: set[str]) -> dict:
        """Contents of config.json. The modelling file reads kv_groups, and query_of_head if queries are shared; serving
        engines read per_layer_config."""
        if architecture.encodes:
            return encoder_config(config, architecture, layout)
        sizes = [list(layer.k.sizes) for layer in layout.layers]
        own = {"AutoConfig": "RaggedConfig", "AutoModel": "RaggedModel", "AutoModelForCausalLM": "RaggedForCausalLM"}
        common = {
            "architectures": ["RaggedForCausalLM"], "auto_map": {k: f"modeling_ragged.{v}" for k, v in own.items()},
            "model_type": f"grouper_ragged_{config['model_type']}", "kv_groups": sizes,
        }  # fmt: skip
        if architecture.replaced:
            order = [layer.k.reader_order for layer in layout.layers]
            q_proj, o_proj = (any(n.endswith(f".{PROJECTIONS[i]}.bias") for n in names) for i in (0, 3))
            return {**config, **common, "head_order": order, "qkv_bias": q_proj, "o_bias": o_proj}
        if not _is_usual(architecture):  # the modelling file finds attentions by their places
            common = {**{k: v for k, v in common.items() if k != "kv_groups"}, **readers_by_place(architecture, layout)}
            if architecture.needs_own_attention:
                return {**config, **common}
        most = max(map(len, sizes))
        whole = {"num_attention_heads": architecture.query_heads, "num_key_value_heads": most}
        per_layer = {}
        for index, groups in enumerate(sizes):
            counts = {"num_attention_heads": len(groups) * max(groups), "num_key_value_heads": len(groups)}
            if counts != whole:
                per_layer[str(index)] = counts
        shared = {}
        if any(layer.q for layer in layout.layers) and "kv_readers" not in common:
            shared["query_of_head"] = [query_of_head(layer) for layer in layout.layers]
        own_counts = {"num_key_value_heads": most, "per_layer_config": per_layer}
        return {**config, **shared, **common, "head_dim": architecture.head_dim, **own_counts}

    def add_files(self, folder: Path, architecture: Architecture) -> None:
        (folder / FILE).write_text(modelling_file(architecture), encoding="utf-8")


def as_written(architecture: Architecture) -> Architecture:
    """Architecture with the projections of our own attention."""
    family = architecture.family
    if family.encodes and isinstance(family.storage, Fused):  # rows of groups of unequal sizes have no order by group
        return replace(architecture, family=replace(family, storage=replace(family.storage, per_group=False)))
    if not architecture.replaced:
        return architecture
    storage = Separate.within(architecture.family.attention)
    return replace(architecture, family=replace(architecture.family, storage=storage, transposed=False))


def modelling_file(architecture: Architecture) -> str:
    """Source of the modelling file for this family's classes."""
    plain = architecture.replaced
    source = Path(__file__).with_name(PLAIN_FILE if plain else FILE).read_text(encoding="utf-8")
    ours = FAMILIES["phi"] if architecture.as_phi else architecture.family_of(0).in_class
    if not plain:
        source = _on_classes(source, ours)
    new = dict(zip(_names(TEMPLATE[plain]), _names(ours)))
    longest_first = "|".join(sorted(new, key=len, reverse=True))
    source = re.sub(rf"\b({longest_first})\b", lambda found: new[found[0]], source)
    since = ours.since if ours.encodes or ours.proved or ours.model_type in NOT_IN_TRANSFORMERS_4 else "4.57"
    return source.replace("transformers 4.57 or later", f"transformers {since} or later")


def _on_classes(source: str, family: Family) -> str:
    """Source with this family's projections, and a line for each of its classes."""
    modules = [path.rpartition(".")[2] for path in family.storage.modules[:-1]]
    if _repeats(family):
        source = _with_repeated(source, family.storage)
    if len(modules) == len(PROJECTIONS) - 1:
        source = source.replace(f"PROJECTIONS = {_strings(PROJECTIONS[:3])}", f"PROJECTIONS = {_strings(modules)}")
    if family.encodes:
        classes = {f"Ragged{name}": name for _, several in heads(family.model_type) for name in several}
    else:
        classes = {"RaggedModel": _model_class(family), "RaggedForCausalLM": family.causal_lm}
    lines = [f'{ours} = ragged(base.{theirs}, "{ours}")' for ours, theirs in classes.items()]
    return "\n".join([source[: source.index("RaggedModel = ")].rstrip() + "\n\n", *lines, ""])


def _repeats(family: Family) -> bool:
    """Whether K and V heads are repeated right behind their projections."""
    return family.encodes and (family.repeats or isinstance(family.storage, Fused))


def _with_repeated(source: str, storage: Storage) -> str:
    """Source in which K and V heads are repeated behind the modules of this storage."""
    part = Path(__file__).with_name(REPEATED_FILE).read_text(encoding="utf-8").partition("# begin\n")[2]
    before, _, behind = source.partition("def install_groups")
    modules = [path.rpartition(".")[2] for path in storage.modules[:-1]]
    fused, by_head = isinstance(storage, Fused), isinstance(storage, Fused) and storage.per_group
    named = f'"{modules[0]}", ()' if fused else f"None, {_strings(modules[1:])}"
    constants = f"FUSED, SHARED, BY_HEAD = {named}, {by_head}\n\n\n"
    return f"{before}{constants}{part}\n\ndef ragged(" + behind.partition("\n\ndef ragged(")[2]


def _is_usual(architecture: Architecture) -> bool:
    """Whether attentions have the places at which modelling files look for them, and know of groups."""
    family = architecture.family.in_class
    usual = family.layer == "layers.{layer}." and family.attention == "self_attn"
    return not family.proved or (usual and not architecture.needs_own_attention)


def _strings(names: Iterable[str]) -> str:
    return "({})".format(", ".join(f'"{name}"' for name in names))


def _model_class(family: Family) -> str:
    return family.model_class or f"{family.classes}Model"


def _names(family: Family) -> list[str]:
    """Modules and classes of transformers that a modelling file names."""
    module, c = family.model_type.removesuffix("_text"), family.classes
    folder, _, source = (family.source or f"{module}.modeling_{module}").partition(".")
    config = family.config_source or f"{module}.configuration_{module}"
    return [
        f"models.{folder}", f"models.{config}", source, f"grouper_ragged_{family.model_type}",
        f"{c}Attention", family.config_class or f"{c}Config", _model_class(family), family.causal_lm, f"A {c} model",
    ]  # fmt: skip


def query_of_head(layer: LayerLayout) -> list[int]:
    """Query projection of each attention output, in the order of the KV groups."""
    order = layer.k.reader_order
    return list(range(len(order))) if layer.q is None else layer.q.group_of[order].tolist()
