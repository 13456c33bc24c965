"""Family of a class, from one pass of a small model of it. Raises GrouperError that names what is unlike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from grouper.errors import GrouperError
from grouper.families.configuration import completed, rotary_dim, sliding_windows, unrotated_layers
from grouper.families.derived.around import Around, around, gain_offset, subtracts_mean
from grouper.families.derived.class_of import Classes
from grouper.families.derived.look import Found, look
from grouper.families.derived.random_model import random_model
from grouper.families.derived.small import EVERY_SIZE, FREE, Sizes, small_config
from grouper.families.derived.watched import Call, Pass, watched
from grouper.families.family import DIVIDES, OWN, Family

TOKENS = 24
ROTARY = (None, "partial_rotary_factor", "rotary_pct", "rotary_percentage", "rotary_dim")
UNROTATED = (None, "full_attention", "no_rope_layers")
UNEVEN = 10  # query heads that do not divide the small hidden size


@dataclass(frozen=True)
class Candidate:
    """Family to prove, and the small model of its class that it was seen in."""

    family: Family
    settings: dict[str, Any]
    model: nn.Module


def derive(classes: Classes, full: dict[str, Any], names: dict[str, str]) -> Candidate:
    """Family of models with these settings. full, names: see `small.full_settings`."""
    sizes, settings, model, seen = running(classes, full, names)
    family = _family(classes, settings, model, seen)
    if family.stock and sizes is FREE:
        family = replace(family, padded=_padded(classes, full, names, family))
    return Candidate(family, settings, model)


def running(
    classes: Classes, full: dict, names: dict[str, str], choice: Sequence[Sizes] = EVERY_SIZE
) -> tuple[Sizes, dict, nn.Module, Pass]:
    """First small model that runs, with its sizes, settings and a pass."""
    why: Exception | None = None
    tokens = torch.randint(3, 199, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    for sizes in choice:
        try:
            settings = small_config(full, names, sizes)
            model = random_model(classes, settings)
            seen = watched(model, {"input_ids": tokens}, use_cache=False)
            for call in seen.calls:
                check_sizes(call, sizes)
            return sizes, settings, model, seen
        except Exception as error:  # whatever a class raises for sizes that it does not take
            why = why or error
    line = next((line.strip() for line in reversed(str(why).splitlines()) if line.strip()), "no reason given")
    raise GrouperError(f"no small model of its class runs ({type(why).__name__}: {line[:200]})") from why


def check_sizes(call: Call, sizes: Sizes) -> None:
    """Raise GrouperError if a kernel was called with other heads than the settings say."""
    found = call.query.shape[1], call.key.shape[1], call.query.shape[3]
    if found != (wanted := (sizes.query_heads, sizes.kv_heads, sizes.d)):
        told = "{} query heads, {} KV heads of {} rows"
        raise GrouperError(f"its attention has {told.format(*found)} where its settings say {told.format(*wanted)}")


def _padded(classes: Classes, full: dict, names: dict[str, str], family: Family) -> str | None:
    """Whether the class takes more query heads than hidden_size has room for (see Family.padded)."""
    if family.qk_norm == "all":
        return None
    try:
        with torch.device("meta"):
            classes.model._from_config(classes.configured(small_config(full, names, Sizes(UNEVEN, 2, 96, 16))))
    except Exception:  # its check of head counts, in whatever form
        return DIVIDES
    return OWN


def _family(classes: Classes, settings: dict, model: Any, seen: Pass) -> Family:
    attentions = look(model, seen)
    layers = getattr(model.config, "num_hidden_layers", None)
    check_layers(attentions, layers)
    first = attentions[0]
    stack, inside = _stack(model, first.layer)
    arounds = [around(seen, one.layer, one.storage.q, one.storage.o) for one in attentions]
    text = completed({**settings, "model_type": classes.model_type})
    query_heads, kv_heads, d = first.heads
    import transformers

    family = Family(
        classes.model_type, "", classes.model.__name__.removesuffix("ForCausalLM"), layer=f"{stack}.{{layer}}.",
        storage=first.storage, transposed=first.transposed, sinks=first.sinks, stock=kv_heads < query_heads,
        head_class=classes.model.__name__, model_class=type(inside).__name__, config_class=classes.config.__name__,
        source=_module(classes.model), config_source=_module(classes.config), proved=True,
        since=transformers.__version__,
    )  # fmt: skip
    family = replace(family, **_norms(model, first, arounds[0]), **_sum(text, first.storage.o, arounds))
    return replace(family, **_positions(family, text, attentions), windowed=_windowed(text, attentions))


def check_layers(attentions: Sequence[Found], layers: Any) -> None:
    """Raise GrouperError unless there is one attention in each layer, stored in the same way in all."""
    if not isinstance(layers, int) or len({one.layer for one in attentions}) != len(attentions):
        raise GrouperError("some of its layers have several attentions, or its configuration does not say how many")
    if len(attentions) != layers:
        mixed = f"{len(attentions)} of {layers} layers of a small model have attention"
        raise GrouperError(f"it mixes attention with other layers, which have no KV cache ({mixed})")
    for field in fields(Found):
        if field.name not in ("layer", "rotation", "window") and len({getattr(a, field.name) for a in attentions}) > 1:
            what = "heads of different numbers or sizes" if field.name == "heads" else f"attention of other {field.name}"
            raise GrouperError(f"some of its layers have {what} than others")
    if attentions[0].heads[1] == 1:
        raise GrouperError("it is multi-query already: there is nothing left to group")


def _stack(model: Any, layer: str) -> tuple[str, nn.Module]:
    """Name of the list of layers within the model without its head, and that model."""
    path, _, number = layer.rpartition(".")
    prefix = f"{model.base_model_prefix}."
    if number != "0":
        raise GrouperError(f"its attention does not begin in the first layer, but in {layer}")
    return path.removeprefix(prefix), getattr(model, model.base_model_prefix, model)


def _module(of: type) -> str:
    """Module of a class within transformers.models."""
    return of.__module__.removeprefix("transformers.models.")


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
