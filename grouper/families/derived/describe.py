"""Fields of a family, from the attentions of a small model. Raises GrouperError that names what is unlike."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import transformers

from grouper.errors import GrouperError
from grouper.families.configuration import completed, rotary_dim, sliding_windows, unrotated_layers
from grouper.families.derived.classes import Classes
from grouper.families.derived.looking import Found, look
from grouper.families.derived.surroundings import Around, around, gain_offset, subtracts_mean
from grouper.families.derived.watching import Pass
from grouper.families.family import Family

ROTARY = (None, "partial_rotary_factor", "rotary_pct", "rotary_percentage", "rotary_dim")
UNROTATED = (None, "full_attention", "no_rope_layers")
READS = {"input_ids": "text", "pixel_values": "pictures", "input_values": "sounds", "input_features": "sounds"}
CACHES = ("none", "token", "source")
PARTS = [(True, False), (False, False), (False, True)]  # in the encoder's layers, of the source: as Family.parts


def described(classes: Classes, settings: dict[str, Any], model: Any, seen: Pass) -> Family:
    """Family of this class. settings: those of the small model. seen: one pass of it."""
    attentions = look(model, seen)
    text = completed({**settings, "model_type": classes.model_type})
    name = classes.model.__name__
    family = Family(
        classes.model_type, "", name.removesuffix("ForCausalLM"), stock=False, head_class=name,
        model_class=type(getattr(model, model.base_model_prefix, model)).__name__,
        config_class=classes.config.__name__, source=_module(classes.model), config_source=_module(classes.config),
        since=transformers.__version__, proved=True,
    )  # fmt: skip
    if classes.kind == "both":
        return _of_both(family, text, model, seen, attentions)
    layers = getattr(model.config, "num_hidden_layers", None)
    if classes.kind == "encoder":
        encoder = replace(family, cache="none", reads=_reads(model))
        return _of_kind(encoder, text, layers, model, seen, attentions)
    found = _of_kind(family, text, layers, model, seen, attentions)
    query_heads, kv_heads, _ = attentions[0].heads
    return replace(found, stock=kv_heads < query_heads, windowed=_windowed(text, attentions))


def _module(of: type) -> str:
    """Module of a class within transformers.models."""
    return of.__module__.removeprefix("transformers.models.")


def _reads(model: Any) -> str:
    if model.main_input_name not in READS:
        raise GrouperError(f"it reads {model.main_input_name}, which is neither text nor pictures nor sounds")
    return READS[model.main_input_name]


def _of_both(family: Family, text: dict, model: Any, seen: Pass, attentions: Sequence[Found]) -> Family:
    """Family of an encoder-decoder, whose attentions come in the order of their calls."""
    kinds = list(dict.fromkeys((one.stack, one.of_source) for one in attentions))
    encoder = kinds[0][0]
    if len(kinds) != 3 or [(stack == encoder, source) for stack, source in kinds] != PARTS:
        raise GrouperError("its encoder and its decoder have attentions of other kinds than self and cross-attention")
    layers, found = [model.config.num_hidden_layers, *[_decoder_layers(model.config)] * 2], []
    for kind, count, cache in zip(kinds, layers, CACHES):
        own = [one for one in attentions if (one.stack, one.of_source) == kind]
        found.append(_of_kind(replace(family, cache=cache), text, count, model, seen, own))
    if len({a.heads for a in attentions}) > 1:
        raise GrouperError("its encoder and its decoder have heads of different numbers or sizes")
    offsets, positions = {part.norm_offset for part in found}, {part.position for part in found}
    if len(offsets) > 1 or positions != {"learned"} or any(part.qk_norm for part in found):
        raise GrouperError("its encoder and its decoder have norms or positions of different kinds")
    reads = "sounds" if _reads(model) == "sounds" else "pairs"
    parts = tuple(replace(part, reads=reads) for part in found)
    return replace(family, parts=parts, position="learned", reads=reads, norm_offset=offsets.pop())


def _decoder_layers(config: Any) -> Any:
    named = (getattr(config, name, None) for name in ("decoder_layers", "num_decoder_layers"))
    return next((count for count in named if count is not None), config.num_hidden_layers)


def _of_kind(family: Family, text: dict, layers: Any, model: Any, seen: Pass, attentions: Sequence[Found]) -> Family:
    """Family of attentions that are one in each layer of a list. layers: how many layers it has."""
    check_layers(attentions, layers)
    first = attentions[0]
    arounds = [around(seen, one.layer, one.storage.q, one.storage.o) for one in attentions]
    family = replace(
        family, layer=f"{_stack(model, first.layer)}.{{layer}}.", storage=first.storage, transposed=first.transposed,
        sinks=first.sinks,
    )  # fmt: skip
    family = replace(family, **_norms(model, first, arounds[0]), **_sum(text, first.storage.o, arounds))
    return replace(family, **_positions(family, text, attentions))


def check_layers(attentions: Sequence[Found], layers: Any) -> None:
    """Raise GrouperError unless there is one attention in each layer, stored in the same way in all."""
    if not isinstance(layers, int) or len({one.layer for one in attentions}) != len(attentions):
        raise GrouperError("some of its layers have several attentions, or its configuration does not say how many")
    if len(attentions) != layers:
        mixed = f"{len(attentions)} of {layers} layers of a small model have attention"
        raise GrouperError(f"it mixes attention with other layers, which have no KV cache ({mixed})")
    for field in fields(Found):
        if field.name not in ("layer", "rotation", "window") and len({getattr(a, field.name) for a in attentions}) > 1:
            unlike = "heads of different numbers or sizes" if field.name == "heads" else f"different {field.name}"
            raise GrouperError(f"its layers have {unlike}")
    if attentions[0].heads[1] == 1:
        raise GrouperError("it is multi-query already: there is nothing left to group")


def _stack(model: Any, layer: str) -> str:
    """Name of the list of layers within the model without its head."""
    path, _, number = layer.rpartition(".")
    if number != "0":
        raise GrouperError(f"its attention does not begin in the first layer, but in {layer}")
    return path.removeprefix(f"{model.base_model_prefix}.")


def _norms(model: Any, first: Found, near: Around) -> dict[str, Any]:
    """Fields of the norms before the projections, and on q and k."""
    layer, like = model.get_submodule(first.layer), model.dtype
    size = model.config.hidden_size
    sample = torch.empty(0, dtype=like)
    offset = None if near.norm is None else gain_offset(layer.get_submodule(near.norm), size, sample)
    found: dict[str, Any] = {"norm": () if offset is None else (near.norm,), "norm_offset": offset or 0.0}
    if first.k_norm is None or first.q_norm is None:
        return found
    offsets, weights = set(), set()
    query_heads, kv_heads, d = first.heads
    for name, heads in ((first.q_norm, query_heads), (first.k_norm, kv_heads)):
        norm, rows = layer.get_submodule(name), heads * d if first.across else d
        weight = getattr(norm, "weight", None)
        weights.add(weight is not None)
        if getattr(norm, "bias", None) is not None or (weight is not None and weight.shape != (rows,)):
            raise GrouperError("its norms on q and k have biases, or a gain for each head")
        if subtracts_mean(norm, rows, sample):
            raise GrouperError("its norms on q and k subtract the mean, which leaves no sign of a plane free")
        offsets.add(gain_offset(norm, rows, sample))
    if len(offsets) > 1 or None in offsets or len(weights) > 1:
        raise GrouperError("its norms on q and k do not divide by the root mean square of their input")
    if weights == {True} and offsets != {found["norm_offset"]}:
        found |= {"norm": (), "norm_offset": offsets.pop()}
    modules = None if (first.q_norm.rpartition(".")[2], first.k_norm.rpartition(".")[2]) == ("q_norm", "k_norm") else (
        first.q_norm, first.k_norm
    )  # fmt: skip
    return {**found, "qk_norm": "all" if first.across else "head", "qk_modules": modules, "qk_gains": True in weights}


def _sum(text: dict, o: str, arounds: Sequence[Around]) -> dict[str, Any]:
    """Fields of the sum with the residual stream."""
    expected = float(text.get("residual_multiplier") or 1.0)
    for one in arounds:
        if one.factor is not None and abs(one.factor - expected) > 1e-4:
            raise GrouperError(f"it adds attention's output {one.factor:.3g} times, which no setting known says")
    adds = {one.adds for one in arounds}
    if len(adds) > 1:
        raise GrouperError("its layers add attention's output to the stream in different ways")
    return {"adds": None if adds == {o} else adds.pop()}


def _positions(family: Family, text: dict, attentions: Sequence[Found]) -> dict[str, Any]:
    """Fields of RoPE, whose rules must give what was seen in each layer."""
    rotations = {one.rotation for one in attentions if one.rotation.rows}
    if not rotations:
        return {"position": "learned"}
    if len(rotations) > 1:
        raise GrouperError("RoPE rotates other rows in some of its layers than in others")
    rotation, d = rotations.pop(), attentions[0].heads[2]
    still = frozenset(i for i, one in enumerate(attentions) if not one.rotation.rows)
    for rule in _rules(text, len(attentions)):
        if unrotated_layers(text, len(attentions), rule) == still:
            break
    else:
        raise GrouperError("its layers without RoPE follow no setting known")
    for rotary in ROTARY:
        if _says(text, rotary) and rotary_dim(text, replace(family, rotary=rotary), d) == rotation.rows:
            return {"rope": rotation.order, "rotary": rotary, "unrotated": rule}
    raise GrouperError(f"RoPE rotates {rotation.rows} of {d} rows of a head, which no setting known says")


def _rules(text: dict, layers: int) -> Iterator[str | None]:
    """Rules for layers without RoPE that this configuration has settings for."""
    for rule in UNROTATED:
        name = "layer_types" if rule == "full_attention" else rule
        if name is None or len(text.get(name) or ()) == layers:
            yield rule


def _says(text: dict, rotary: str | None) -> bool:
    return rotary in (None, "partial_rotary_factor") or text.get(rotary) is not None


def _windowed(text: dict, attentions: Sequence[Found]) -> bool:
    """Whether some layers keep a window. The rule for it must give what was seen in each."""
    seen = tuple(one.window for one in attentions)
    if not any(seen):
        return False
    if sliding_windows(text, len(attentions), True) != seen:
        raise GrouperError("its layers see parts of the text that no sliding_window says")
    return True
