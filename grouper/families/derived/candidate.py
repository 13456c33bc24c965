"""Family of a class, from one pass of a small model of it. Raises GrouperError that names what is unlike."""

import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from grouper.errors import GrouperError
from grouper.families.derived.classes import Classes
from grouper.families.derived.describe import described
from grouper.families.derived.random_models import random_model
from grouper.families.derived.small import BOTH_HEADS, EVERY_SIZE, FREE, Sizes, small_config
from grouper.families.derived.watching import Call, Pass, watched
from grouper.families.family import DIVIDES, OWN, Family
from grouper.model.dummy_inputs import inputs_of
from grouper.running.kept_cache import NAMES as CACHES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 24
UNEVEN = 10  # query heads that do not divide the small hidden size


@dataclass(frozen=True)
class Candidate:
    """Family to prove, and the small model of its class that it was seen in. attention: name of its attention class."""

    family: Family
    model: "PreTrainedModel"
    attention: str = ""


def derive(classes: Classes, full: dict[str, Any], names: dict[str, str]) -> Candidate:
    """Family of models with these settings. full, names: see `small.full_settings`."""
    check_kind(classes, full)
    sizes, settings, model, seen = running(classes, full, names)
    family = described(classes, settings, model, seen)
    if family.stock and sizes is FREE:
        family = replace(family, padded=_padded(classes, full, names, family))
    if family.encodes and family.reads in ("text", "pairs"):
        family = replace(family, taken=_taken(model, settings))
    return Candidate(family, model, attention_class(model, seen))


def attention_class(model: "PreTrainedModel", seen: Pass) -> str:
    """Name of the class that calls the kernel first; "" if none does."""
    return next((type(model.get_submodule(call.name)).__name__ for call in seen.calls), "")


def check_kind(classes: Classes, full: dict[str, Any]) -> None:
    """Raise GrouperError for an encoder that is set up as a decoder, or whose decoder has other heads."""
    if classes.kind == "encoder" and (full.get("is_decoder") or full.get("add_cross_attention")):
        raise GrouperError("it is set up as a decoder (is_decoder), and its type is supported as an encoder")
    counts = {full[key] for key in BOTH_HEADS if full.get(key) is not None}
    if len(counts) > 1:
        raise GrouperError("its encoder and its decoder have different numbers of heads")


def _taken(model: "PreTrainedModel", settings: dict[str, Any]) -> int:
    """Positions that its longest text cannot have, because it numbers them from its padding index on."""
    longest = settings.get("max_position_embeddings")
    for taken in (0, 1 + (settings.get("pad_token_id") or 0)):
        if not isinstance(longest, int):
            break
        with suppress(Exception), torch.inference_mode():  # an index that is out of range
            model(**inputs_of(model, longest - taken, 4 if hasattr(model.config, "decoder_layers") else 0))
            return taken
    return 0


def running(
    classes: Classes, full: dict, names: dict[str, str], choice: Sequence[Sizes] = EVERY_SIZE
) -> tuple[Sizes, dict, "PreTrainedModel", Pass]:
    """First small model that runs, with its sizes, settings and a pass."""
    why: Exception | None = None
    for sizes in choice:
        try:
            settings = {**small_config(full, names, sizes), **begun(classes)}
            model = random_model(classes, settings)
            inputs = inputs_of(model, TOKENS, TOKENS - 4 if classes.kind == "both" else 0)
            seen = watched(model, inputs, **({} if classes.kind == "encoder" else {"use_cache": False}))
            for call in seen.calls:
                check_sizes(call, sizes)
            if classes.kind == "encoder":
                check_uncached(model, inputs)
            return sizes, settings, model, seen
        except Exception as error:  # whatever a class raises for sizes that it does not take
            why = error
    line = next((line.strip() for line in reversed(str(why).splitlines()) if line.strip()), "no reason given")
    raise GrouperError(f"no small model of its class runs ({type(why).__name__}: {line[:200]})") from why


def check_uncached(model: "PreTrainedModel", inputs: dict[str, Any]) -> None:
    """Raise GrouperError if a model without a head that writes text keeps a cache, as a decoder does."""
    if "use_cache" not in inspect.signature(model.forward).parameters:
        return
    with torch.inference_mode():
        output = model(**inputs, use_cache=True)
    if any(output.get(name) is not None for name in CACHES):
        raise GrouperError("it is the decoder of a larger model, and has no head of its own")


def begun(classes: Classes) -> dict[str, int]:
    """Settings of a decoder behind an encoder, which few classes have by default: the id that it begins with."""
    return {"decoder_start_token_id": 2} if classes.kind == "both" else {}


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
