"""Names of tensors in checkpoints where a class has others: found by comparing the numbers that transformers saved."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.families.family import Family


def as_stored(family: Family, model: nn.Module, saved: Checkpoint) -> Family:
    """Family with the names of the saved tensors. model: the model that was saved, in float32."""
    if not family.proved or all(_is_found(part, saved) for part in family.parts or (family,)):
        return family
    if family.parts:
        raise GrouperError("its tensors are stored under other names than its class has")
    here = family.layer.format(layer=0)
    stem = next(n for n, _ in model.named_parameters() if f".{here}" in f".{n}")
    stem = stem[: f".{stem}".index(f".{here}")] + here
    named = {n.removeprefix(stem): p for n, p in model.named_parameters() if n.startswith(stem)}
    found = {_owner(name): _owner(n) for name, p in named.items() if (n := _stored(saved, p)) is not None}
    if not found.keys() >= set(map(_owner, _needed(family))):
        raise GrouperError("its tensors are stored in another form than its class has them")
    stored = _common(list(found.items()))
    if stored is None:
        raise GrouperError("the names of its stored tensors follow no rule")
    inside = {called: name.removeprefix(stored) for called, name in found.items()}
    pairs = sorted(((n, c) for c, n in inside.items() if n != c), key=lambda pair: -len(pair[0]))
    layer = _within(stored)
    names = ((layer.partition("0")[0], family.layer.partition("{")[0]), *pairs)
    return replace(
        family, layer=layer.replace("0", "{layer}"), storage=family.storage.renamed(inside.__getitem__),
        norm=tuple(inside.get(n, n) for n in family.norm), renamed=names,
        sinks=inside[family.sinks] if family.sinks else None,
    )  # fmt: skip


def _needed(family: Family) -> list[str]:
    """Names of attention's tensors within a layer."""
    return [*(f"{name}.weight" for name in family.storage.modules), *([family.sinks] if family.sinks else [])]


def _is_found(family: Family, saved: Checkpoint) -> bool:
    """Whether the tensors of the first attention have the names that its class has."""
    here = family.layer.format(layer=0)
    return all(saved.before(here) + here + name in saved for name in _needed(family))


def _stored(saved: Checkpoint, parameter: Tensor) -> str | None:
    """Name of the saved tensor with these numbers."""
    shape = tuple(parameter.shape)
    for name, info in saved.tensors.items():
        if tuple(info.shape) == shape and torch.equal(saved.tensor(name), parameter):
            return name
    return None


def _owner(name: str) -> str:
    """Module of a weight or bias; any other parameter itself."""
    module, _, kind = name.rpartition(".")
    return module if kind in ("weight", "bias") else name


def _common(pairs: list[tuple[str, str]]) -> str | None:
    """Prefix of all stored names, up to the layer's number."""
    starts = {name[: name.index(".0.") + 3] for _, name in pairs if ".0." in name}
    return starts.pop() if len(starts) == 1 else None


def _within(stored: str) -> str:
    """Name of the layer with its list: the last two parts."""
    return ".".join(stored.rstrip(".").split(".")[-2:]) + "."
