"""What `grouper inspect --families` prints: each family, how exact merges are in it, and what it can be exported as."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from grouper.families.decoders import DIVIDES, FAMILIES, REFUSED, Family
from grouper.merging import MERGES


class Exactness(Protocol):
    """An entry of a registry, as far as this table goes."""

    exact_in: ClassVar[tuple[str | None, ...]]


@dataclass(frozen=True)
class FamilyRow:
    """reason: why not, where it is not supported. merges, fitness: by name, "exact" or "approximate": whether the
    exported model does what the closed form says. note: where and why not. classes: of exports.
    """

    family: str
    models: str
    supported: bool
    reason: str
    merges: dict[str, str]
    fitness: dict[str, str]
    note: str
    classes: list[str]


def family_rows(fitnesses: Mapping[str, Exactness] | None = None) -> list[FamilyRow]:
    """fitnesses: the registry of them, which this package does not know."""
    rows = [
        FamilyRow(
            f.model_type, f.models, True, "", exactness(MERGES, f), exactness(fitnesses or {}, f), note(f), classes(f)
        )
        for f in FAMILIES.values()
    ]  # fmt: skip
    refused = sorted(REFUSED.items(), key=lambda item: (item[1], item[0]))
    return rows + [FamilyRow(name, "", False, why, {}, {}, "", []) for name, why in refused]


def exactness(entries: Mapping[str, Exactness], family: Family) -> dict[str, str]:
    """What folds into q and o is exact unless a norm stands between."""
    return {name: "exact" if family.qk_norm in entry.exact_in else "approximate" for name, entry in entries.items()}


def note(family: Family) -> str:
    """How K is merged here, and what is approximate."""
    kind = family.qk_norm
    behind = [f"{name} {merge.behind_norms[kind]}" for name, merge in MERGES.items() if kind in merge.behind_norms]
    if family.qk_norm == "head":
        text = f"norms on q and k leave K no rotation: {', '.join(behind)}"
    elif family.qk_norm == "all":
        text = f"a norm across heads changes with them, in the mean restored: {', '.join(behind)}"
    elif family.position != "rope":
        text = "K as V: no RoPE"
    elif family.rotary:
        text = "K per RoPE plane, its unrotated rows as V"
    else:
        text = "K per RoPE plane"
    text += ", as V in layers without RoPE" if family.model_type == "smollm3" else ""
    return text + (f"; with {family.approximate}, what changes a basis is approximate" if family.approximate else "")


def classes(family: Family) -> list[str]:
    """The classes of exports, with the class of transformers that carries them where that is another one."""
    found = family.export_classes(family.as_phi is not None)
    if family.as_phi:
        when = "" if family.as_phi == "always" else f", with {family.as_phi}"
        return [f"{name} (as Phi{when})" if name == "stock" else name for name in found]
    carriers = {"mistral": "as Mistral", "llama": "as Llama", DIVIDES: "if heads divide"}
    carrier = carriers.get(family.padded or "")
    return [f"{name} ({carrier})" if name == "padded" and carrier else name for name in found]


def markdown(rows: list[FamilyRow]) -> str:
    """Two tables: what is supported, and what is not and why."""
    able, unable = [r for r in rows if r.supported], [r for r in rows if not r.supported]
    reasons: dict[str, list[str]] = {}
    for row in unable:
        reasons.setdefault(row.reason, []).append(f"`{row.family}`")
    lines = ["| family | models | merges and fitnesses | how | exports |", "| --- | --- | --- | --- | --- |"]
    for r in able:
        lines.append(f"| `{r.family}` | {r.models} | {_summary(r.merges)} | {r.note} | {', '.join(r.classes)} |")
    lines += ["", "| refused | because |", "| --- | --- |"]
    return "\n".join(lines + [f"| {', '.join(names)} | {why} |" for why, names in reasons.items()])


def _summary(merges: dict[str, str]) -> str:
    exact = [name for name, how in merges.items() if how == "exact"]
    if len(exact) == len(merges):
        return "all exact"
    return f"{', '.join(exact)} exact, others approximate" if exact else "approximate"
