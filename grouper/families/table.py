"""Table of `grouper inspect --families`: the families, how exact merges are in each, and its export classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from grouper.families.decoders import DIVIDES, FAMILIES, REFUSED, Family
from grouper.merging import MERGES


class Exactness(Protocol):
    """Registry entry with the one field that this table reads."""

    exact_in: ClassVar[tuple[str | None, ...]]


@dataclass(frozen=True)
class FamilyRow:
    """One family. reason: why it is not supported, if so. merges, fitness: "exact" or "approximate" by name, i.e.
    whether the exported model computes exactly what the closed form predicts. note: where and why merges are
    approximate. classes: export classes."""

    family: str
    models: str
    supported: bool
    reason: str
    merges: dict[str, str]
    fitness: dict[str, str]
    note: str
    classes: list[str]


def family_rows(fitnesses: Mapping[str, Exactness] | None = None) -> list[FamilyRow]:
    """Rows of the table. fitnesses: registry of fitnesses, which this package cannot import."""
    rows = [
        FamilyRow(
            f.model_type, f.models, True, "", exactness(MERGES, f), exactness(fitnesses or {}, f), note(f), classes(f)
        )
        for f in FAMILIES.values()
    ]  # fmt: skip
    refused = sorted(REFUSED.items(), key=lambda item: (item[1], item[0]))
    return rows + [FamilyRow(name, "", False, why, {}, {}, "", []) for name, why in refused]


def exactness(entries: Mapping[str, Exactness], family: Family) -> dict[str, str]:
    """Exactness of each entry in this family: changes folded into q and o are exact unless a norm lies between."""
    return {name: "exact" if family.qk_norm in entry.exact_in else "approximate" for name, entry in entries.items()}


def note(family: Family) -> str:
    """Note on how K is merged in this family, and which part is approximate."""
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
    """Export classes, each with the class of transformers that carries it if that is another family's."""
    found = family.export_classes(family.as_phi is not None)
    if family.as_phi:
        when = "" if family.as_phi == "always" else f", with {family.as_phi}"
        return [f"{name} (as Phi{when})" if name == "stock" else name for name in found]
    carriers = {"mistral": "as Mistral", "llama": "as Llama", DIVIDES: "if heads divide"}
    carrier = carriers.get(family.padded or "")
    return [f"{name} ({carrier})" if name == "padded" and carrier else name for name in found]


def markdown(rows: list[FamilyRow]) -> str:
    """Two Markdown tables: supported families, and unsupported ones with the reasons."""
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
